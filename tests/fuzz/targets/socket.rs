//! A line on the agent's socket: any text is a request, the same one when written down again, or is answered in the
//! language that it was meant in. And a line that an agent answers: the plugin understands it or says so.
#![no_main]

use bulkhead::api::{Answer, Request, Unreadable};
use bulkhead_cni::protocol::CniAnswer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(line) = str::from_utf8(bytes) else { return };
    let again = match Request::parse(line) {
        Ok(Request::Cni(request)) => {
            serde_json::to_string(&request).map(|text| (text, Request::Cni(request)))
        }
        Ok(Request::Query(query)) => serde_json::to_string(&query).map(|text| (text, Request::Query(query))),
        Err(Unreadable::Cni(answer)) => {
            assert!(matches!(answer, CniAnswer::Failed { code: 6, .. }), "{answer:?}");
            assert!(!serde_json::to_string(&answer).expect("an answer is JSON").contains('\n'));
            return;
        }
        Err(Unreadable::Query(answer)) => {
            assert!(matches!(answer, Answer::Error(_)), "{answer:?}");
            assert!(!serde_json::to_string(&answer).expect("an answer is JSON").contains('\n'));
            if let Ok(answer) = serde_json::from_str::<CniAnswer>(line) {
                let text = serde_json::to_string(&answer).expect("an answer is JSON");
                assert_eq!(
                    serde_json::from_str::<CniAnswer>(&text).expect("what was written is read"),
                    answer
                );
            }
            return;
        }
    };
    let (text, request) = again.expect("requests are JSON");
    assert!(!text.contains('\n'));
    assert_eq!(Request::parse(&text), Ok(request), "{text}");
});
