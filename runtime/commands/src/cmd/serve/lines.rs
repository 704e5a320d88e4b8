//! Lines of requests from a client, with limits on length, memory and time.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limits::{Budget, Reservation};

/// Bytes per read, which every client may hold without a reservation.
const BLOCK: usize = 64 << 10;
/// Bytes per reservation.
const RESERVE: usize = 1 << 20;

/// A line of a client.
pub enum Line {
    /// A request without its newline, and the memory reserved for it.
    Request(Vec<u8>, Vec<Reservation>),
    /// A line that exceeds the length limit and was skipped.
    TooLong,
    /// A line without memory available, which was skipped.
    NoMemory,
}

/// Time limits of a client.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Limit between two requests.
    pub idle: Duration,
    /// Limit for receiving one request.
    pub request: Duration,
}

/// A reader of lines from a client.
pub struct Lines {
    stream: Arc<UnixStream>,
    patience: Patience,
    budget: Budget,
    longest: usize,
    buffer: Vec<u8>,
    reserved: Vec<Reservation>,
}

impl Lines {
    /// Creates a reader of lines of at most `longest` bytes, whose memory comes from `budget`.
    pub fn new(
        stream: Arc<UnixStream>,
        patience: Patience,
        budget: Budget,
        longest: usize,
    ) -> Self {
        Self {
            stream,
            patience,
            budget,
            longest,
            buffer: Vec::new(),
            reserved: Vec::new(),
        }
    }

    /// Reads the next line that is not blank; `None` at the end of the stream.
    ///
    /// # Errors
    /// If the stream fails or a time limit is exceeded (`TimedOut`).
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        let mut deadline = Instant::now() + self.patience.idle;
        let mut searched = 0;
        let mut dropped = None;
        loop {
            if let Some(end) = find_line_end(&self.buffer, searched) {
                let line = self.take(end);
                if let Some(dropped) = dropped {
                    return Ok(Some(dropped));
                }
                if !line.0.trim_ascii().is_empty() {
                    return Ok(Some(Line::Request(line.0, line.1)));
                }
                searched = 0;
                continue;
            }
            if dropped.is_none() {
                dropped = self.over_limit();
            }
            if dropped.is_some() {
                self.buffer = Vec::new();
                self.reserved.clear();
            }
            searched = self.buffer.len();
            let was_empty = self.buffer.is_empty() && dropped.is_none();
            if self.fill(deadline)? == 0 {
                return Ok(self.last(dropped));
            }
            if was_empty {
                deadline = Instant::now() + self.patience.request;
            }
        }
    }

    /// Removes the line up to `end` from the buffer, with its reservations.
    fn take(&mut self, end: usize) -> (Vec<u8>, Vec<Reservation>) {
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.pop();
        // The rest of the buffer is at most one block.
        (line, std::mem::take(&mut self.reserved))
    }

    /// Returns the last line, which the end of the stream may terminate.
    fn last(&mut self, dropped: Option<Line>) -> Option<Line> {
        let line = std::mem::take(&mut self.buffer);
        match line.trim_ascii().is_empty() {
            true => dropped,
            false => Some(Line::Request(line, std::mem::take(&mut self.reserved))),
        }
    }

    /// Returns an error line if the unfinished line is too long or cannot reserve memory.
    fn over_limit(&mut self) -> Option<Line> {
        if self.buffer.len() > self.longest {
            return Some(Line::TooLong);
        }
        let needed = (self.buffer.len() + BLOCK).saturating_sub(2 * BLOCK);
        while self.reserved.len() * RESERVE < needed {
            match self.budget.reserve(RESERVE) {
                Some(reservation) => self.reserved.push(reservation),
                None => return Some(Line::NoMemory),
            }
        }
        None
    }

    /// Reads available data, waiting until `deadline` at most. Returns the number of bytes.
    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let start = self.buffer.len();
        self.buffer.resize(start + BLOCK, 0);
        let read = loop {
            match (&*self.stream).read(&mut self.buffer[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer
            .truncate(start + read.as_ref().map_or(0, |&n| n));
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            read => read,
        }
    }
}

fn find_line_end(bytes: &[u8], from: usize) -> Option<usize> {
    let position = bytes[from..].iter().position(|&byte| byte == b'\n')?;
    Some(from + position)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    const PATIENCE: Patience = Patience {
        idle: Duration::from_secs(20),
        request: Duration::from_secs(20),
    };

    fn lines(budget: usize, longest: usize, patience: Patience) -> (UnixStream, Lines) {
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        let lines = Lines::new(Arc::new(server), patience, Budget::new(budget), longest);
        (client, lines)
    }

    fn text(line: Option<Line>) -> String {
        match line {
            None => "end".to_owned(),
            Some(Line::TooLong) => "too long".to_owned(),
            Some(Line::NoMemory) => "no memory".to_owned(),
            Some(Line::Request(line, _)) => String::from_utf8(line).expect("UTF-8"),
        }
    }

    #[test]
    fn lines_come_one_by_one() {
        let (mut client, mut lines) = lines(0, 1000, PATIENCE);
        client.write_all(b"one\n\n  \ntwo\nthree").expect("sent");
        drop(client);
        for expected in ["one", "two", "three", "end"] {
            assert_eq!(text(lines.next().expect("a line")), expected);
        }
    }

    #[test]
    fn what_is_too_long_is_read_past() {
        let (mut client, mut lines) = lines(16 << 20, 1 << 20, PATIENCE);
        let writer = thread::spawn(move || {
            client.write_all(&vec![b'a'; 3 << 20]).expect("sent");
            client.write_all(b"\nshort\n").expect("sent");
            let fits = vec![b'b'; 1 << 20];
            client.write_all(&fits).expect("sent");
            client.write_all(b"\n").expect("sent");
        });
        assert_eq!(text(lines.next().expect("a line")), "too long");
        assert_eq!(text(lines.next().expect("a line")), "short");
        assert_eq!(text(lines.next().expect("a line")).len(), 1 << 20);
        writer.join().expect("all is sent");
    }

    #[test]
    fn memory_is_reserved_and_returned() {
        let (mut client, mut lines) = lines(4 << 20, 64 << 20, PATIENCE);
        let writer = thread::spawn(move || {
            for megabytes in [8, 2] {
                client
                    .write_all(&vec![b'a'; megabytes << 20])
                    .expect("sent");
                client.write_all(b"\n").expect("sent");
            }
        });
        assert_eq!(text(lines.next().expect("a line")), "no memory");
        assert_eq!(text(lines.next().expect("a line")).len(), 2 << 20);
        writer.join().expect("all is sent");
        assert!(lines.budget.reserve(4 << 20).is_some());
    }

    #[test]
    fn patience_ends() {
        let patience = Patience {
            idle: Duration::from_millis(50),
            request: Duration::from_millis(50),
        };
        let (client, mut idle) = lines(0, 1000, patience);
        let error = idle.next().err().expect("a time-out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
        // Single bytes do not extend the deadline.
        let (mut client, mut slow) = lines(0, 1000, patience);
        let writer = thread::spawn(move || {
            while client.write_all(b"a").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let error = slow.next().err().expect("a time-out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(slow);
        writer.join().expect("it notices");
    }
}
