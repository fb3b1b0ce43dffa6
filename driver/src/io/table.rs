//! Text tables with aligned columns, and the same content as JSON.
//!
//! A column's key is its JSON name; the text shows it with spaces for underscores.

use serde_json::{Map, Value};
use std::fmt;

/// One value: how it is shown, and what it is in JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    text: String,
    value: Value,
}

impl Cell {
    /// A number shown with `decimals` digits after the point; JSON keeps all of it (`null` when not finite).
    pub fn number(value: f64, decimals: usize) -> Self {
        Self { text: format!("{value:.decimals$}"), value: Value::from(value) }
    }

    /// A value that is not known: `-` in text, `null` in JSON.
    pub fn none() -> Self {
        Self { text: "-".to_owned(), value: Value::Null }
    }

    /// What it is in JSON.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Any JSON value with its own text.
    pub fn shown_as(text: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { text: text.into(), value: value.into() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::shown_as(text, text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::shown_as(count.to_string(), count)
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::shown_as(count.to_string(), count)
    }
}

impl From<bool> for Cell {
    fn from(yes: bool) -> Self {
        Self::shown_as(if yes { "yes" } else { "no" }, yes)
    }
}

/// Rows under named columns; JSON: an array of objects.
#[derive(Clone, Debug, Default)]
pub struct Table {
    keys: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(keys: &[&'static str]) -> Self {
        Self { keys: keys.to_vec(), rows: Vec::new() }
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row; missing cells are unknown, those beyond the columns are dropped.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) -> &mut Self {
        debug_assert_eq!(N, self.keys.len(), "one cell a column");
        let mut cells = Vec::from(cells);
        cells.resize(self.keys.len(), Cell::none());
        self.rows.push(cells);
        self
    }

    /// The rows as JSON objects.
    pub fn to_json(&self) -> Value {
        let object = |row: &Vec<Cell>| -> Map<String, Value> {
            self.keys.iter().zip(row).map(|(k, c)| ((*k).to_owned(), c.value.clone())).collect()
        };
        self.rows.iter().map(object).collect()
    }

    /// JSON or text, as the user's `--json` says.
    pub fn render(&self, json: bool) -> String {
        if json { pretty(&self.to_json()) } else { self.to_string() }
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|r| r[column].text.chars().count());
        cells.chain([self.keys[column].chars().count()]).max().unwrap_or(0)
    }

    /// Columns of numbers are aligned right.
    fn is_numeric(&self, column: usize) -> bool {
        let numeric = |v: &Value| v.is_number() || v.is_null();
        !self.rows.is_empty() && self.rows.iter().all(|r| numeric(&r[column].value))
    }
}

impl fmt::Display for Table {
    /// Header and rows, a line each, two spaces between columns; no newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format: Vec<_> = (0..self.keys.len()).map(|c| (self.width(c), self.is_numeric(c))).collect();
        let line = |texts: Vec<&str>| {
            let cells = texts.iter().zip(&format).map(|(text, (width, right))| match right {
                true => format!("{text:>width$}"),
                false => format!("{text:<width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let titles: Vec<String> = self.keys.iter().map(|k| k.replace('_', " ")).collect();
        write!(f, "{}", line(titles.iter().map(String::as_str).collect()))?;
        self.rows.iter().try_for_each(|row| write!(f, "\n{}", line(row.iter().map(|c| c.text.as_str()).collect())))
    }
}

/// Named values, one a line; JSON: one object.
#[derive(Clone, Debug, Default)]
pub struct Record {
    fields: Vec<(&'static str, Cell)>,
}

impl Record {
    /// An empty record.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    pub fn field(&mut self, key: &'static str, cell: impl Into<Cell>) -> &mut Self {
        self.fields.push((key, cell.into()));
        self
    }

    /// The fields as a JSON object.
    pub fn to_json(&self) -> Value {
        let fields = self.fields.iter().map(|(k, c)| ((*k).to_owned(), c.value.clone()));
        Value::Object(fields.collect())
    }

    /// JSON or text, as the user's `--json` says.
    pub fn render(&self, json: bool) -> String {
        if json { pretty(&self.to_json()) } else { self.to_string() }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.fields.iter().map(|(k, _)| k.chars().count()).max().unwrap_or(0);
        let line = |(key, cell): &(&str, Cell)| {
            let title = key.replace('_', " ");
            format!("{title:<width$}  {}", cell.text).trim_end().to_owned()
        };
        f.write_str(&self.fields.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Table {
        let mut table = Table::new(&["kernel", "median_ms", "calls"]);
        table.row(["gemm_u8s8".into(), Cell::number(1.23456, 2), 12usize.into()]);
        table.row(["größer".into(), Cell::none(), 3usize.into()]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        let want = "kernel     median ms  calls\ngemm_u8s8       1.23     12\ngrößer             -      3";
        assert_eq!(sample().render(false), want);
        assert_eq!(Table::new(&["a", "b_c"]).to_string(), "a  b c");
    }

    #[test]
    fn json_keeps_precision_and_keys() {
        let want = json!([
            {"kernel": "gemm_u8s8", "median_ms": 1.23456, "calls": 12},
            {"kernel": "größer", "median_ms": null, "calls": 3},
        ]);
        assert_eq!(sample().to_json(), want);
        assert_eq!(serde_json::from_str::<Value>(&sample().render(true)).unwrap(), want);
        assert_eq!(Cell::number(f64::NAN, 1).value, Value::Null);
    }

    #[test]
    fn records_are_objects() {
        let mut record = Record::new();
        record.field("images", 250usize).field("top1", Cell::number(81.6, 1)).field("logit_sqnr_db", Cell::none());
        assert_eq!(record.render(false), "images         250\ntop1           81.6\nlogit sqnr db  -");
        assert_eq!(record.to_json(), json!({"images": 250, "top1": 81.6, "logit_sqnr_db": null}));
        record.field("exact", true).field("name", String::from("x"));
        assert!(record.render(true).contains("\"exact\": true"));
    }
}
