//! Ways to damage JSON documents and other text.

use serde_json::Value;

use crate::damage::{Edit, number, place};

/// What stands in for a value of a JSON document.
fn stand_in(value: u8) -> Value {
    match value % 16 {
        0 => Value::Null,
        1 => true.into(),
        2 => "".into(),
        3 => "a".repeat(1 << (value / 16)).into(),
        4 => (-1).into(),
        5 => 0.5.into(),
        6 => 1e300.into(),
        7 => Value::Array(Vec::new()),
        8 => Value::Object(serde_json::Map::new()),
        9 => (0..8 * usize::from(value)).fold(Value::Null, |inner, _| Value::Array(vec![inner])),
        10 => Value::Array(vec![number(value / 16).into(); 9]),
        11 => "\u{0}\u{2028}\"\\".into(),
        12 => i64::MIN.into(),
        _ => number(value / 3).into(),
    }
}

/// Replaces, removes, repeats, renames and swaps values of a JSON document. What is no JSON comes
/// back as it is.
pub fn json(input: &[u8], edits: &[Edit]) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(input) else { return input.to_vec() };
    for &(at, kind, value) in edits {
        let count = count(&document);
        let other = node(&mut document, &mut place(at.rotate_left(16), count)).map(|v| v.clone());
        let Some(found) = node(&mut document, &mut place(at, count)) else { continue };
        match (kind % 6, found) {
            (0, found) => *found = other.unwrap_or(Value::Null),
            (1, Value::Object(map)) => {
                let key = map.keys().nth(place(at, map.len())).cloned();
                key.and_then(|key| map.remove(&key));
            }
            (1, Value::Array(list)) if !list.is_empty() => {
                list.remove(place(at, list.len()));
            }
            (2, Value::Object(map)) => {
                let key = map.keys().nth(place(at, map.len())).cloned();
                if let Some((key, moved)) = key.and_then(|key| map.remove_entry(&key)) {
                    map.insert(format!("{key}{}", char::from(value)), moved);
                }
            }
            (2, Value::Array(list)) => list.extend(list.clone()),
            (3, Value::Number(number)) => {
                let near = number.as_u64().unwrap_or(0);
                *number = near.wrapping_add_signed(i64::from(value as i8)).into();
            }
            (3, Value::String(text)) => text.push(char::from(value)),
            (_, found) => *found = stand_in(value),
        }
    }
    serde_json::to_vec(&document).unwrap_or_default()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value that comes `index` values after `value` in depth-first order.
fn node<'v>(value: &'v mut Value, index: &mut usize) -> Option<&'v mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|v| node(v, index)),
        Value::Object(map) => map.values_mut().find_map(|v| node(v, index)),
        _ => None,
    }
}

/// Replaces, removes, repeats and indents the lines of a text.
pub fn lines(input: &str, edits: &[Edit]) -> String {
    let mut lines: Vec<String> = input.lines().map(String::from).collect();
    for &(at, kind, value) in edits {
        let place = place(at, lines.len());
        let Some(line) = lines.get_mut(place) else { continue };
        match kind % 6 {
            0 => line.insert(0, ' '),
            1 => *line = line.trim_start().to_string(),
            2 => {
                let key = line.split_once(':').map_or("", |(key, _)| key).to_string();
                *line = format!("{key}: {}", stand_in(value));
            }
            3 => {
                let again = line.clone();
                lines.insert(place, again);
            }
            4 => drop(lines.remove(place)),
            _ => line.push(char::from(value)),
        }
    }
    lines.join("\n")
}
