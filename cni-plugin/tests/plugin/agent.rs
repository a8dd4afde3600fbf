//! An agent that plays a part on a socket of its own.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use bulkhead_cni::protocol::{CniAnswer, CniRequest, MAX_LINE};
use tempfile::TempDir;

pub enum Part {
    Answers(CniAnswer),
    /// Reads the request and says nothing for as long as anyone waits.
    IsSilent,
    /// Sends a byte a second: never quite silent, never done.
    Dribbles,
    ClosesUnread,
    ClosesUnanswered,
    /// Says something that is not our protocol.
    Says(&'static str),
    SaysTooMuch,
}

/// Plays its part once per connection; requests it could read are kept.
pub struct FakeAgent {
    pub socket: PathBuf,
    requests: Receiver<CniRequest>,
    _directory: TempDir,
}

impl FakeAgent {
    pub fn playing(part: Part) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (heard, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if matches!(part, Part::ClosesUnread) {
                    continue;
                }
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                if heard.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
                // The plugin may be gone before we are done; that is its right.
                match &part {
                    Part::Answers(answer) => {
                        let _ = writeln!(stream, "{}", serde_json::to_string(answer).unwrap());
                    }
                    Part::IsSilent => thread::sleep(Duration::from_secs(10)),
                    Part::Dribbles => {
                        for _ in 0..10 {
                            let _ = stream.write_all(b" ");
                            thread::sleep(Duration::from_millis(200));
                        }
                    }
                    Part::Says(text) => {
                        let _ = stream.write_all(text.as_bytes());
                    }
                    Part::SaysTooMuch => {
                        let _ = stream.write_all(&vec![b' '; MAX_LINE + 1]);
                    }
                    Part::ClosesUnanswered | Part::ClosesUnread => {}
                }
            }
        });
        Self { socket, requests, _directory: directory }
    }

    pub fn content() -> Self {
        Self::playing(Part::Answers(CniAnswer::Ok))
    }

    /// What was asked so far.
    pub fn heard(&self) -> Vec<CniRequest> {
        self.requests.try_iter().collect()
    }
}
