//! From the records of a file to examples.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    str::FromStr,
};

use serde_json::Value;

use crate::{
    error::{DataError, Place},
    example::{Example, Fields},
    loaded::{Loaded, Skipped},
};

/// Which columns of a CSV file, or fields of JSON objects, make an [`Example`].
///
/// Records with one id and the same required texts are one example with several references.
///
/// A name that a file does not have is looked for without regard to upper and lower case: `Dialogue` is `dialogue`, if
/// there is no `dialogue`.
///
/// ```
/// use std::path::Path;
/// use sideburn_data::{Columns, parse_csv};
///
/// let columns = Columns { optional: vec!["section".into()], ..Columns::new(["article"], "headline") };
/// let file = "id,article,headline\n7,It rained.,Rain\n";
/// let examples = parse_csv(Path::new("news.csv"), file.as_bytes(), &columns)?.examples;
/// assert_eq!((examples[0].id.as_str(), examples[0].field("article")), ("7", Some("It rained.")));
/// assert_eq!(examples[0].targets, ["Rain"]);
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
///
/// They are also what a command line says: the fields of an example, each with the column that it stands in. `id` is the
/// id, and `summary` or `target` is the target. Without a column, as `dialogue` here, a field is called as its column.
///
/// ```
/// # use std::path::Path;
/// # use sideburn_data::{Columns, parse_csv};
/// let columns: Columns = "dialogue,summary=gist,id=index".parse()?;
/// let file = "index,dialogue,gist,source\n7,A: Hi.,Hi,web\n";
/// let examples = parse_csv(Path::new("talks.csv"), file.as_bytes(), &columns)?.examples;
/// assert_eq!((examples[0].id.as_str(), examples[0].field("dialogue")), ("7", Some("A: Hi.")));
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Names that the id may have, the first of them that is there. Where a file has none of them, its records are
    /// numbered from 0.
    pub id: Vec<String>,
    /// Texts that every record has. They become [`Example::fields`].
    pub required: Vec<String>,
    /// Texts that a record may have; `topic1` is taken for `topic`, if there is no `topic`. Those that are there and
    /// not blank become [`Example::fields`], too.
    pub optional: Vec<String>,
    /// What should be answered, such as `summary`. Several references are an array of texts, or stand in `summary1`,
    /// `summary2` and so on, or from `summary0` on.
    pub target: String,
    /// Whether records whose ids are that of an example and the number of a reference (`test_7_1`, `test_7_2`) are one
    /// example, `test_7`. What is required must be equal in them.
    pub numbered_ids: bool,
    /// Ids of records that are skipped where a text is empty: known faults of a published file.
    pub skip: Vec<String>,
    /// What the file calls a field, where that is not the field's name: `("dialogue", "text")`. If `id` is among them, a
    /// file must have it.
    pub named: BTreeMap<String, String>,
    /// Whether a record that is no example (a text is missing or blank, fields are too many, an id is taken, a line is no
    /// JSON) is skipped and reported in [`Loaded::skipped`], where it would be an error. What makes it doubtful where records
    /// begin, such as a quotation mark out of place, remains an error.
    pub lenient: bool,
}

impl Columns {
    /// Texts that every record has, a target, and `id` for the id.
    pub fn new<S: Into<String>>(required: impl IntoIterator<Item = S>, target: impl Into<String>) -> Self {
        Self {
            id: vec!["id".to_owned()],
            required: required.into_iter().map(Into::into).collect(),
            optional: Vec::new(),
            target: target.into(),
            numbered_ids: false,
            skip: Vec::new(),
            named: BTreeMap::new(),
            lenient: false,
        }
    }

    /// What the file calls the field `name`.
    fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.named.get(name).map_or(name, String::as_str)
    }
}

impl FromStr for Columns {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let fail = |reason: String| Err(DataError::Columns { text: text.to_owned(), reason });
        let mut columns = Self::new([] as [String; 0], "");
        for part in text.split(',') {
            let (field, column) = part.split_once('=').unwrap_or((part, part));
            let (field, column) = (field.trim(), column.trim());
            if field.is_empty() || column.is_empty() {
                return fail(format!("\"{part}\" lacks a name"));
            }
            let is_target = matches!(field, "summary" | "target");
            if columns.required.iter().any(|known| known == field)
                || (field == "id" && columns.named.contains_key("id"))
                || (is_target && !columns.target.is_empty())
            {
                return fail(format!("{field} is there twice"));
            }
            match field {
                _ if is_target => columns.target = column.to_owned(),
                "id" => drop(columns.named.insert("id".to_owned(), column.to_owned())),
                _ => {
                    columns.required.push(field.to_owned());
                    if field != column {
                        columns.named.insert(field.to_owned(), column.to_owned());
                    }
                }
            }
        }
        if columns.target.is_empty() {
            return fail("none of them is the summary, which is what should be answered".to_owned());
        }
        if columns.required.is_empty() {
            return fail("none of them is a text that the prompt is made of".to_owned());
        }
        Ok(columns)
    }
}

/// The names of a record's values: a CSV header, or the keys of one JSON object.
#[derive(Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) names: &'a [String],
    pub(crate) at: &'a Place,
    pub(crate) is_header: bool,
}

impl Names<'_> {
    /// Where the value called `name` stands.
    fn find(&self, name: &str) -> Result<Option<usize>, DataError> {
        let places = |is_it: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..self.names.len()).filter(|place| is_it(self.names[*place].trim())).collect()
        };
        let exact = places(&|found| found == name);
        let found = if exact.is_empty() { places(&|found| found.eq_ignore_ascii_case(name)) } else { exact };
        match found.as_slice() {
            [] => Ok(None),
            [place] => Ok(Some(*place)),
            _ => Err(DataError::RepeatedColumn { at: self.at.clone(), column: name.to_owned() }),
        }
    }

    fn require(&self, name: &str) -> Result<usize, DataError> {
        self.find(name)?.ok_or_else(|| {
            let (at, found) = (self.at.clone(), self.names.iter().take(20).cloned().collect());
            match self.is_header {
                true => DataError::MissingColumn { at, column: name.to_owned(), found },
                false => DataError::MissingField { at, field: name.to_owned(), found },
            }
        })
    }

    /// The first of `names` that is there.
    fn first(&self, names: &[String]) -> Result<Option<usize>, DataError> {
        names.iter().find_map(|name| self.find(name).transpose()).transpose()
    }
}

/// Where a record has the values of an example.
pub(crate) struct Layout {
    id: Option<usize>,
    required: Vec<usize>,
    optional: Vec<Option<usize>>,
    targets: Vec<usize>,
}

impl Layout {
    /// Whether the value at `place` is one of those.
    #[cfg(feature = "parquet")]
    pub(crate) fn has(&self, place: usize) -> bool {
        let optional = self.optional.iter().flatten();
        self.id.iter().chain(&self.required).chain(optional).chain(&self.targets).any(|known| *known == place)
    }

    pub(crate) fn new(columns: &Columns, names: Names<'_>) -> Result<Self, DataError> {
        // Those of `summary1`, `summary2`, ... by their numbers.
        let mut numbered: Vec<(u64, usize)> = Vec::new();
        for (place, name) in names.names.iter().enumerate() {
            let parts = name.trim().split_at_checked(columns.target.len());
            if let Some((_, number)) = parts.filter(|(start, _)| start.eq_ignore_ascii_case(&columns.target))
                && is_number(number)
            {
                numbered.push((number.parse().unwrap_or(u64::MAX), place));
            }
        }
        numbered.sort_unstable();
        let first = numbered.first().map_or(1, |(number, _)| *number.min(&1));
        for (expected, (number, _)) in (first..).zip(&numbered) {
            if *number < expected {
                let column = format!("{}{number}", columns.target);
                return Err(DataError::RepeatedColumn { at: names.at.clone(), column });
            }
            // With summary2 left out, summary3 must not vanish.
            if *number > expected {
                names.require(&format!("{}{expected}", columns.target))?;
            }
        }
        let targets = match numbered.is_empty() {
            true => vec![names.require(&columns.target)?],
            false => numbered.into_iter().map(|(_, place)| place).collect(),
        };
        Ok(Self {
            id: match columns.named.get("id") {
                Some(column) => Some(names.require(column)?),
                None => names.first(&columns.id)?,
            },
            required: columns
                .required
                .iter()
                .map(|name| names.require(columns.column(name)))
                .collect::<Result<_, _>>()?,
            optional: columns
                .optional
                .iter()
                .map(|name| columns.column(name))
                .map(|name| names.first(&[name.to_owned(), format!("{name}1")]))
                .collect::<Result<_, _>>()?,
            targets,
        })
    }
}

struct Gathered {
    line: u64,
    example: Example,
    /// The number of each reference of an example that stands on several records; empty for all others.
    numbers: Vec<u32>,
}

/// The most references of one example. More of them are an id that is none.
const MAX_REFERENCES: usize = 1000;

/// Checks records, and puts those of one example together.
pub(crate) struct Gatherer<'a> {
    columns: &'a Columns,
    rows: usize,
    skipped: Vec<Skipped>,
    /// Whether the first record has an id; then all of them need one.
    has_ids: Option<bool>,
    gathered: Vec<Gathered>,
    by_id: HashMap<String, usize>,
}

impl<'a> Gatherer<'a> {
    pub(crate) fn new(columns: &'a Columns) -> Self {
        Self { columns, rows: 0, skipped: Vec::new(), has_ids: None, gathered: Vec::new(), by_id: HashMap::new() }
    }

    pub(crate) fn columns(&self) -> &'a Columns {
        self.columns
    }

    /// Takes the record at `at`, which `add` adds; if that fails, the reading fails or, in a lenient one, skips the record.
    pub(crate) fn take(
        &mut self,
        at: &Place,
        add: impl FnOnce(&mut Self) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        self.rows += 1;
        match add(self) {
            Err(error) if self.columns.lenient => {
                let (message, place) = (error.to_string(), format!("{at}: "));
                let reason = message.strip_prefix(&place).map_or(message.clone(), str::to_owned);
                self.skipped.push(Skipped { at: at.clone(), reason });
                Ok(())
            }
            added => added,
        }
    }

    /// Adds the record at `at`, whose values have the `names` and stand as `layout` says.
    pub(crate) fn add(
        &mut self,
        at: &Place,
        names: &[String],
        layout: &Layout,
        values: &[Value],
    ) -> Result<(), DataError> {
        let record = Record { at, names, values };
        let has_ids = self.has_ids.unwrap_or(layout.id.is_some());
        let id = match (layout.id, has_ids) {
            (Some(place), true) => record.id(place)?,
            (None, false) => (self.rows - 1).to_string(),
            (_, true) => {
                let (field, found) = (self.columns.id.join(" or "), names.to_vec());
                return Err(DataError::MissingField { at: at.clone(), field, found });
            }
            (_, false) => return Err(DataError::UnexpectedId { at: at.clone() }),
        };
        let fields = match record.fields(self.columns, layout) {
            Err(DataError::Blank { field, .. }) if self.columns.skip.contains(&id) => {
                let reason = format!("\"{id}\" has an empty {field}, a known fault of the published data");
                self.skipped.push(Skipped { at: at.clone(), reason });
                return Ok(());
            }
            fields => fields?,
        };
        let example = Example { id, fields, targets: record.targets(layout)? };
        match split_reference(&example.id).filter(|_| self.columns.numbered_ids) {
            Some((id, number)) => {
                let id = id.to_owned();
                self.add_reference(at, example, id, number)?;
            }
            None => self.insert(at, Gathered { line: at.number, example, numbers: Vec::new() })?,
        }
        self.has_ids = Some(has_ids);
        Ok(())
    }

    /// Adds a record whose id is `id` and the number of a reference.
    fn add_reference(&mut self, at: &Place, mut example: Example, id: String, number: u32) -> Result<(), DataError> {
        let Some(known) = self.by_id.get(&id).map(|&index| &mut self.gathered[index]) else {
            example.id = id;
            let numbers = vec![number; example.targets.len()];
            return self.insert(at, Gathered { line: at.number, example, numbers });
        };
        let at = at.clone();
        if known.numbers.is_empty() || known.numbers.contains(&number) {
            return Err(DataError::DuplicateId { at, id: example.id, first: known.line });
        }
        let differs = |field: &&String| known.example.fields.get(*field) != example.fields.get(*field);
        if let Some(field) = self.columns.required.iter().find(differs) {
            return Err(DataError::DifferentFields { at, id: example.id, field: field.clone(), first: known.line });
        }
        if known.numbers.len() + example.targets.len() > MAX_REFERENCES {
            return Err(DataError::TooManyReferences { at, id, limit: MAX_REFERENCES });
        }
        let position = known.numbers.partition_point(|&before| before < number);
        // A record may have several targets itself: each has the number of its record.
        known.numbers.splice(position..position, example.targets.iter().map(|_| number));
        known.example.targets.splice(position..position, example.targets);
        if position == 0 {
            known.example.fields = example.fields;
        }
        Ok(())
    }

    /// All examples, in the order their first records came. `path` is what was read.
    pub(crate) fn finish(self, path: &Path, has_header: bool) -> Result<Loaded, DataError> {
        let path = path.to_path_buf();
        match self.skipped.first() {
            _ if !self.gathered.is_empty() => {}
            Some(first) => return Err(DataError::AllSkipped { path, rows: self.rows, first: first.to_string() }),
            None => return Err(DataError::NoExamples { path, has_header }),
        }
        let examples = self.gathered.into_iter().map(|gathered| gathered.example).collect();
        Ok(Loaded { examples, rows: self.rows, skipped: self.skipped })
    }

    fn insert(&mut self, at: &Place, gathered: Gathered) -> Result<(), DataError> {
        let (at, id) = (at.clone(), gathered.example.id.clone());
        if let Some(&first) = self.by_id.get(&id) {
            let (known, example) = (&mut self.gathered[first], gathered.example);
            let is_numbered = !known.numbers.is_empty() || !gathered.numbers.is_empty();
            let is_equal = |field: &String| known.example.fields.get(field) == example.fields.get(field);
            let is_known = |target: &String| known.example.targets.contains(target);
            if is_numbered || !self.columns.required.iter().all(is_equal) || example.targets.iter().any(is_known) {
                return Err(DataError::DuplicateId { at, id, first: known.line });
            }
            if known.example.targets.len() + example.targets.len() > MAX_REFERENCES {
                return Err(DataError::TooManyReferences { at, id, limit: MAX_REFERENCES });
            }
            known.example.targets.extend(example.targets);
            return Ok(());
        }
        if gathered.example.targets.len() > MAX_REFERENCES {
            return Err(DataError::TooManyReferences { at, id, limit: MAX_REFERENCES });
        }
        self.by_id.insert(id, self.gathered.len());
        self.gathered.push(gathered);
        Ok(())
    }
}

struct Record<'a> {
    at: &'a Place,
    names: &'a [String],
    values: &'a [Value],
}

impl Record<'_> {
    fn id(&self, place: usize) -> Result<String, DataError> {
        match &self.values[place] {
            Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
            _ => self.text(place),
        }
    }

    fn fields(&self, columns: &Columns, layout: &Layout) -> Result<Fields, DataError> {
        let mut fields = Fields::new();
        for (name, &place) in columns.required.iter().zip(&layout.required) {
            fields.insert(name.clone(), self.text(place)?);
        }
        for (name, place) in columns.optional.iter().zip(&layout.optional) {
            match place.map(|place| (place, &self.values[place])) {
                None | Some((_, Value::Null)) => {}
                Some((_, Value::String(text))) if text.trim().is_empty() => {}
                Some((place, _)) => {
                    fields.insert(name.clone(), self.text(place)?);
                }
            }
        }
        Ok(fields)
    }

    /// The texts of all targets: of an array each of its elements.
    fn targets(&self, layout: &Layout) -> Result<Vec<String>, DataError> {
        let mut targets = Vec::new();
        for &place in &layout.targets {
            match &self.values[place] {
                Value::Array(texts) if !texts.is_empty() => {
                    for (index, text) in texts.iter().enumerate() {
                        targets.push(self.checked(format!("{}[{index}]", self.names[place]), text)?);
                    }
                }
                _ => targets.push(self.text(place)?),
            }
        }
        Ok(targets)
    }

    fn text(&self, place: usize) -> Result<String, DataError> {
        self.checked(self.names[place].clone(), &self.values[place])
    }

    /// A text that says something, as it is but for the line ends.
    fn checked(&self, field: String, value: &Value) -> Result<String, DataError> {
        match value {
            Value::String(text) if text.trim().is_empty() => Err(DataError::Blank { at: self.at.clone(), field }),
            Value::String(text) if text.contains('\0') => Err(DataError::Nul { at: self.at.clone(), field }),
            Value::String(text) => Ok(text.replace("\r\n", "\n").replace('\r', "\n")),
            other => Err(DataError::FieldType { at: self.at.clone(), field, found: kind(other) }),
        }
    }
}

/// What a value is called in messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(texts) if texts.is_empty() => "an empty array",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Splits `test_7_2` into `test_7` and 2. `train_7` is not a reference: it is the seventh example of "train".
fn split_reference(id: &str) -> Option<(&str, u32)> {
    let (example_id, number) = id.rsplit_once('_')?;
    let (_, example_number) = example_id.rsplit_once('_')?;
    if !is_number(number) || !is_number(example_number) {
        return None;
    }
    Some((example_id, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["id", "dialogue", "summary", "topic"];

    fn columns() -> Columns {
        Columns { optional: vec!["topic".into()], numbered_ids: true, ..Columns::new(["dialogue"], "summary") }
    }

    fn add(gatherer: &mut Gatherer<'_>, line: u64, values: [&str; 3]) -> Result<(), DataError> {
        let names = NAMES.map(String::from);
        let at = Place::new(Path::new("f"), 1);
        let layout = Layout::new(gatherer.columns, Names { names: &names, at: &at, is_header: true })?;
        let topic = format!("topic of {}", values[2]);
        let values = [values[0], values[1], values[2], &topic].map(Value::from);
        let at = Place::new(Path::new("f"), line);
        gatherer.take(&at, |gatherer| gatherer.add(&at, &names, &layout, &values))
    }

    #[test]
    fn only_two_numbers_make_a_reference() {
        assert_eq!(split_reference("test_7_2"), Some(("test_7", 2)));
        for id in ["train_7", "test_7_", "test_7_x", "test_a_1", "7", "_1", "test_7_99999999999"] {
            assert_eq!(split_reference(id), None, "{id}");
        }
    }

    #[test]
    fn references_are_put_in_the_order_of_their_numbers() {
        let columns = columns();
        let mut gatherer = Gatherer::new(&columns);
        for (line, id, summary) in
            [(2, "test_0_2", "b"), (3, "test_1_1", "x"), (4, "test_0_3", "c"), (5, "test_0_1", "a")]
        {
            let dialogue = if id.starts_with("test_0") { "hi" } else { "ho" };
            add(&mut gatherer, line, [id, dialogue, summary]).unwrap();
        }
        let examples = gatherer.finish(Path::new("f"), true).unwrap().examples;
        assert_eq!(examples.len(), 2);
        assert_eq!((examples[0].id.as_str(), examples[0].field("topic")), ("test_0", Some("topic of a")));
        assert_eq!(examples[0].targets, ["a", "b", "c"]);
    }

    #[test]
    fn ids_that_collide_are_refused() {
        let columns = columns();
        let mut gatherer = Gatherer::new(&columns);
        add(&mut gatherer, 2, ["test_0_1", "hi", "a"]).unwrap();
        let error = add(&mut gatherer, 3, ["test_0_1", "hi", "b"]).unwrap_err();
        assert!(error.to_string().starts_with("f, line 3: the id \"test_0_1\" is already that of line 2"), "{error}");
        let error = add(&mut gatherer, 4, ["test_0_2", "other", "b"]).unwrap_err();
        assert!(matches!(error, DataError::DifferentFields { first: 2, .. }), "{error}");
        let error = add(&mut gatherer, 5, ["test_0", "hi", "b"]).unwrap_err();
        assert!(matches!(error, DataError::DuplicateId { first: 2, .. }), "{error}");
    }

    #[test]
    fn records_that_repeat_an_example_add_references() {
        let columns = columns();
        let mut gatherer = Gatherer::new(&columns);
        add(&mut gatherer, 2, ["a", "hi", "x"]).unwrap();
        add(&mut gatherer, 3, ["b", "ho", "x"]).unwrap();
        add(&mut gatherer, 4, ["a", "hi", "y"]).unwrap();
        for values in [["a", "hi", "x"], ["a", "ho", "z"]] {
            let error = add(&mut gatherer, 5, values).unwrap_err();
            assert!(matches!(error, DataError::DuplicateId { first: 2, .. }), "{error}");
        }
        let examples = gatherer.finish(Path::new("f"), true).unwrap().examples;
        assert_eq!(
            (examples[0].targets.as_slice(), examples[1].targets.len()),
            (["x", "y"].map(String::from).as_slice(), 1)
        );
        assert_eq!(examples[0].field("topic"), Some("topic of x"));
    }

    #[test]
    fn ids_are_split_only_where_that_is_the_rule() {
        let columns = Columns { numbered_ids: false, ..columns() };
        let mut gatherer = Gatherer::new(&columns);
        add(&mut gatherer, 2, ["test_0_1", "hi", "a"]).unwrap();
        add(&mut gatherer, 3, ["test_0_2", "ho", "b"]).unwrap();
        let ids: Vec<String> =
            gatherer.finish(Path::new("f"), true).unwrap().examples.into_iter().map(|example| example.id).collect();
        assert_eq!(ids, ["test_0_1", "test_0_2"]);
    }
}
