//! The turns of a conversation.

use edge_lmm::chat::Droppable;
use edge_lmm::{Media, Message, Role, user_message};

/// A question, its media and its answer.
#[derive(Debug, Clone)]
pub struct Turn {
    pub question: String,
    pub media: Vec<Media>,
    /// Empty while the question is being answered.
    pub answer: String,
}

/// The turns so far and the media of the next question.
#[derive(Debug, Default)]
pub struct Conversation {
    system: Option<String>,
    pub turns: Vec<Turn>,
    pub pending: Vec<Media>,
}

impl Conversation {
    pub fn new(system: Option<&str>) -> Self {
        Self {
            system: system.map(str::to_owned),
            ..Self::default()
        }
    }

    /// Returns the messages up to the last question and their media.
    pub fn messages(&self) -> (Vec<Message>, Vec<Media>) {
        let system = self.system.iter();
        let mut messages: Vec<Message> = system
            .map(|text| Message::text(Role::System, text))
            .collect();
        let mut media = Vec::new();
        for (index, turn) in self.turns.iter().enumerate() {
            messages.push(user_message(&turn.media, &turn.question));
            media.extend(turn.media.iter().cloned());
            if index + 1 < self.turns.len() {
                messages.push(Message::text(Role::Assistant, &turn.answer));
            }
        }
        (messages, media)
    }

    /// Removes the oldest turn, or the media of the first `count` turns. Returns a description of
    /// what was removed; `None` if there is nothing to remove.
    pub fn drop_part(&mut self, part: Droppable, count: usize) -> Option<String> {
        let turns = &mut self.turns[..count];
        match part {
            Droppable::Turn if count == 0 => None,
            Droppable::Turn => {
                let turn = self.turns.remove(0);
                let start: String = turn.question.chars().take(60).collect();
                Some(format!("removed the turn {start:?}"))
            }
            Droppable::Media => {
                let removed: usize = turns.iter_mut().map(|t| t.media.drain(..).count()).sum();
                (removed > 0).then(|| format!("removed {removed} media of earlier turns"))
            }
        }
    }

    /// Returns the conversation as text.
    pub fn transcript(&self) -> String {
        let system = self.system.iter().map(|text| format!("system: {text}\n\n"));
        let turns = self.turns.iter().map(|turn| {
            let media: String = (turn.media.iter())
                .map(|medium| format!("[{}] ", medium.kind().as_str()))
                .collect();
            format!(
                "user: {media}{}\n\nassistant: {}\n\n",
                turn.question, turn.answer
            )
        });
        system.chain(turns).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Conversation {
        let image = edge_lmm::RgbImage::new(1, 1, vec![0; 3]).expect("an image");
        let turn = |question: &str, media| Turn {
            question: question.to_owned(),
            media,
            answer: question.to_uppercase(),
        };
        Conversation {
            turns: vec![turn("a", vec![Media::image(image)]), turn("b", vec![])],
            ..Conversation::new(Some("s"))
        }
    }

    #[test]
    fn messages_end_with_the_last_question() {
        let (messages, media) = conversation().messages();
        let roles: Vec<Role> = messages.iter().map(|message| message.role).collect();
        assert_eq!(
            roles,
            [Role::System, Role::User, Role::Assistant, Role::User]
        );
        assert_eq!(media.len(), 1);
    }

    #[test]
    fn turns_and_media_can_be_dropped() {
        let mut dropped = conversation();
        assert!(dropped.drop_part(Droppable::Media, 1).is_some());
        assert!(dropped.drop_part(Droppable::Media, 1).is_none());
        assert_eq!(dropped.messages().1.len(), 0);
        assert!(
            dropped
                .drop_part(Droppable::Turn, 1)
                .expect("a turn")
                .contains("\"a\"")
        );
        assert!(dropped.drop_part(Droppable::Turn, 0).is_none());
        assert_eq!(dropped.turns.len(), 1);
    }

    #[test]
    fn transcripts_name_the_media() {
        let expected =
            "system: s\n\nuser: [image] a\n\nassistant: A\n\nuser: b\n\nassistant: B\n\n";
        assert_eq!(conversation().transcript(), expected);
    }
}
