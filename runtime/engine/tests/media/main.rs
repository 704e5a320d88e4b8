//! Reading of media files. `data/make_fixtures.py` writes the files and what Pillow and libsndfile
//! read from them, `data/make_videos.py` the videos and what ffmpeg reads.

mod ffmpeg;
mod fixtures;
mod hostile;
mod images;
mod kinds;
mod mp4;
mod script;
mod selection;
mod sounds;
mod sources;
mod truncated;
mod videos;
