//! What a line is about, read from its text: a conntracer of all namespaces prints far more than is parsed.

/// The kind of a line; nothing where it names none.
pub(crate) fn kind_of(line: &str) -> &str {
    after(line, "\"kind\":\"")
        .and_then(|rest| rest.split('"').next())
        .unwrap_or_default()
}

/// Whether a `stats` line answers SIGUSR1.
pub(crate) fn is_checkpoint(line: &str) -> bool {
    line.contains("\"reason\":\"signal\"")
}

/// The namespace of a finding or an event. No text within a line can be taken for it: quotes in there are escaped.
pub(crate) fn netns_of(line: &str) -> Option<u32> {
    let digits = after(line, "\"netns\":")?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    digits[..end].parse().ok()
}

/// A `stats` line that tells of these namespaces only: that of a long run tells of hundreds.
pub(crate) fn of_namespaces(line: &str, watched: &[u32]) -> String {
    const KEY: &str = "\"namespaces\":[";
    let Some(start) = line.find(KEY).map(|at| at + KEY.len()) else {
        return line.to_owned();
    };
    let mut kept = Vec::new();
    let mut rest = &line[start..];
    while let Some(length) = object(rest) {
        let (namespace, more) = rest.split_at(length);
        if netns_of(namespace).is_some_and(|netns| watched.contains(&netns)) {
            kept.push(namespace);
        }
        rest = more.strip_prefix(',').unwrap_or(more);
    }
    format!("{}{}{rest}", &line[..start], kept.join(","))
}

/// Length of the object that a text begins with.
fn object(text: &str) -> Option<usize> {
    if !text.starts_with('{') {
        return None;
    }
    let (mut depth, mut is_text, mut is_escaped) = (0_u32, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_text = !is_text,
            b'{' if !is_text => depth += 1,
            b'}' if !is_text => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.find(key).map(|at| &line[at + key.len()..])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_namespace_is_the_subjects_and_not_a_texts() {
        let finding = json!({
            "kind": "finding", "because": "\"netns\":7", "subject": {"scope": "netns", "netns": 42},
        });
        assert_eq!(kind_of(&finding.to_string()), "finding");
        assert_eq!(netns_of(&finding.to_string()), Some(42));
        let host = json!({"kind": "finding", "subject": {"scope": "host"}}).to_string();
        assert_eq!(netns_of(&host), None);
    }

    #[test]
    fn the_other_namespaces_are_cut_out_and_nothing_else() {
        let namespace = |netns: u32| {
            let because = format!("}}]{{\"\\ of {netns}");
            json!({"netns": netns, "counters": {"RetransSegs": {"kernel": 1, "because": because}}})
        };
        let line = |namespaces: &[u32]| {
            let namespaces: Vec<Value> = namespaces.iter().map(|netns| namespace(*netns)).collect();
            json!({"kind": "stats", "reconciliation": {"compared": 9, "namespaces": namespaces}})
        };
        for (all, watched, left) in [
            (vec![1, 22, 333], vec![22], vec![22]),
            (vec![1, 22, 333], vec![333, 1], vec![1, 333]),
            (vec![1, 22, 333], vec![2, 33], vec![]),
            (vec![], vec![1], vec![]),
        ] {
            let cut = of_namespaces(&line(&all).to_string(), &watched);
            let cut: Value = serde_json::from_str(&cut).unwrap();
            assert_eq!(cut, line(&left));
        }
    }
}
