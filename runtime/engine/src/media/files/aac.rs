//! AAC (low complexity), decoded by Symphonia.

use symphonia::core::codecs::{CODEC_TYPE_AAC, CodecParameters, Decoder, DecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::Packet;

use super::error::MediaError;
use super::samples::Audio;
use super::stream::{Mixer, failed};

const NAME: &str = "AAC";

/// A decoder of a sound track.
pub(super) struct AacDecoder {
    decoder: Box<dyn Decoder>,
    mixer: Mixer,
    /// Number of packets decoded.
    packets: usize,
}

impl AacDecoder {
    /// Creates a decoder from an `AudioSpecificConfig` (ISO/IEC 14496-3, section 1.6.2.1).
    ///
    /// # Errors
    /// [`MediaError::Unsupported`] if it is not of low complexity.
    pub fn new(config: &[u8]) -> Result<Self, MediaError> {
        let mut parameters = CodecParameters::new();
        parameters
            .for_codec(CODEC_TYPE_AAC)
            .with_extra_data(config.into());
        let decoder = symphonia::default::get_codecs()
            .make(&parameters, &DecoderOptions::default())
            .map_err(|error| match error {
                Error::Unsupported(feature) => MediaError::Unsupported {
                    format: format!("AAC: {feature}"),
                    advice: "convert it with ffmpeg -c:a aac".to_owned(),
                },
                error => failed(NAME, error),
            })?;
        Ok(Self {
            decoder,
            mixer: Mixer::new(),
            packets: 0,
        })
    }

    /// Decodes a packet.
    pub fn decode(&mut self, packet: &[u8]) -> Result<(), MediaError> {
        let packet = Packet::new_from_slice(0, 0, 0, packet);
        let decoded = self.decoder.decode(&packet);
        let decoded = decoded.map_err(|error| {
            MediaError::damaged(NAME, format!("packet {}: {error}", self.packets))
        })?;
        self.packets += 1;
        self.mixer.add(NAME, &decoded)
    }

    /// Returns the sound from `start` on, in seconds.
    pub fn finish(self, start: f64) -> Result<Audio, MediaError> {
        self.mixer.finish(NAME, start)
    }
}
