//! Whole matrices in a few words: who does not reach whom; everybody else does.
//!
//! ```text
//! TCP 80: db* <- web* probe-1; web* -> db-1      only these reach the dbs; the webs reach only db-1
//! UDP 53 IPv4: guest* <-                         nobody reaches the guests; asked in IPv4 alone
//! TCP 80: web* db* || guest*                     nothing between the two sides
//! TCP 80: web* db* -/> guest*                    nothing from the first to the second
//! ```
//!
//! A name may end in `*`; `*` is everybody. Between a pod and its own node everything passes (semantics 29,
//! 30), so no rule is about these pairs.

use std::collections::{BTreeMap, BTreeSet};

use lab::{Family, Question, Survey, Transport, survey::Reached};

/// What every question must be answered, by the lines of a step.
pub fn matrices(survey: &Survey<'_>, lines: &[&str]) -> BTreeMap<Question, Reached> {
    let mut matrices = BTreeMap::new();
    for line in lines {
        let (question, rules) = line.split_once(':').unwrap_or_else(|| panic!("no question in {line}"));
        let rules = rules.split(';').map(str::trim).filter(|rule| !rule.is_empty());
        let rules: Vec<_> = rules.map(|rule| Rule::parse(survey, rule)).collect();
        let mut reached = survey.pairs();
        reached.retain(|(from, to)| {
            let node = |pod: &str, node: &str| survey.node_of(pod).as_deref() == Some(node);
            node(from, to) || node(to, from) || rules.iter().all(|rule| rule.admits(from, to))
        });
        for question in questions(question) {
            let before = matrices.insert(question, reached.clone());
            assert!(before.is_none(), "{question:?} is asked twice: {lines:?}");
        }
    }
    matrices
}

/// The pairs that differ, for people to read.
pub fn differences(want: &BTreeMap<Question, Reached>, seen: &BTreeMap<Question, Reached>) -> Vec<String> {
    let mut lines = Vec::new();
    for (question @ (transport, port, family), want) in want {
        let seen = &seen[question];
        for (verdict, pairs) in [("reached", seen.difference(want)), ("not reached", want.difference(seen))] {
            lines.extend(
                pairs.map(|(from, to)| format!("{transport} {port} {family}: {from} -> {to} {verdict}")),
            );
        }
    }
    lines
}

fn questions(text: &str) -> Vec<Question> {
    let words: Vec<_> = text.split_whitespace().collect();
    let [transport, port, family @ ..] = words.as_slice() else { panic!("{text} is not a question") };
    let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|t| t.to_string() == *transport);
    let transport = transport.unwrap_or_else(|| panic!("{text} names no transport"));
    let port = port.parse().unwrap_or_else(|_| panic!("{text} names no port"));
    let families = [Family::V4, Family::V6]
        .into_iter()
        .filter(|f| family.is_empty() || family.contains(&&*f.to_string()));
    families.map(|family| (transport, port, family)).collect()
}

enum Rule {
    /// Into the first, only from the second.
    OnlyFrom(BTreeSet<String>, BTreeSet<String>),
    /// Out of the first, only to the second.
    OnlyTo(BTreeSet<String>, BTreeSet<String>),
    /// Nothing from the first to the second.
    Never(BTreeSet<String>, BTreeSet<String>),
    /// Nothing between the two.
    Apart(BTreeSet<String>, BTreeSet<String>),
}

impl Rule {
    fn parse(survey: &Survey<'_>, text: &str) -> Self {
        type Form = fn(BTreeSet<String>, BTreeSet<String>) -> Rule;
        let forms: [(&str, Form); 4] =
            [("<-", Self::OnlyFrom), ("-/>", Self::Never), ("->", Self::OnlyTo), ("||", Self::Apart)];
        let found = forms.into_iter().find_map(|(sign, form)| Some((text.split_once(sign)?, form)));
        let ((first, second), form) = found.unwrap_or_else(|| panic!("{text} is not a rule"));
        let known = survey.names();
        form(names(first, &known), names(second, &known))
    }

    fn admits(&self, from: &str, to: &str) -> bool {
        match self {
            Self::OnlyFrom(subjects, peers) => !subjects.contains(to) || peers.contains(from),
            Self::OnlyTo(subjects, peers) => !subjects.contains(from) || peers.contains(to),
            Self::Never(sources, destinations) => !(sources.contains(from) && destinations.contains(to)),
            Self::Apart(one, other) => {
                !(one.contains(from) && other.contains(to) || other.contains(from) && one.contains(to))
            }
        }
    }
}

fn names(text: &str, known: &[String]) -> BTreeSet<String> {
    let matching = |word: &str| -> Vec<String> {
        let fits = |name: &&String| match word.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name.as_str() == word,
        };
        let names: Vec<_> = known.iter().filter(fits).cloned().collect();
        assert!(!names.is_empty(), "{word} fits none of {known:?}");
        names
    };
    text.split_whitespace().flat_map(matching).collect()
}
