//! Which sites an adapter attaches to.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::AdapterError;
use crate::fields::Fields;
use crate::outline::{ModelOutline, Site, SiteKind, is_suffix};
use crate::pattern::Pattern;

/// The field that says which sites are adapted.
const TARGETS: &str = "target_modules";

/// `target_modules` of `peft`: which linear layers are adapted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Sites whose name is one of these or ends with `.` and one of these.
    Names(Vec<String>),
    /// `all-linear`: every linear layer but the output head. Any other text: sites that this regular expression
    /// matches as a whole.
    Pattern(String),
}

impl<S: Into<String>, const N: usize> From<[S; N]> for TargetModules {
    fn from(names: [S; N]) -> Self {
        Self::Names(names.map(Into::into).into())
    }
}

impl From<&[&str]> for TargetModules {
    fn from(names: &[&str]) -> Self {
        Self::Names(names.iter().map(|name| (*name).to_owned()).collect())
    }
}

impl TargetModules {
    /// Every linear layer but the output head.
    pub fn all_linear() -> Self {
        Self::Pattern("all-linear".to_owned())
    }

    /// For each of `sites`, whether it is meant; none need be. `field` is where the targets stand.
    ///
    /// # Errors
    /// If the pattern is not a regular expression.
    pub(crate) fn matches<'a>(
        &self,
        field: &'static str,
        sites: impl Iterator<Item = &'a Site>,
    ) -> Result<Vec<bool>, AdapterError> {
        match self {
            Self::Names(names) => Ok(sites.map(|site| names.iter().any(|name| is_suffix(&site.name, name))).collect()),
            Self::Pattern(pattern) => {
                let pattern = Pattern::of_whole_name(field, pattern)?;
                sites.map(|site| pattern.is_match(&site.name)).collect()
            }
        }
    }

    /// For each of `sites`, whether it is chosen. `head` names the output head, which `all-linear` leaves out.
    ///
    /// A name that no site has is passed over, as by `peft`, while another one matches.
    ///
    /// # Errors
    /// If a name means only sites that cannot be targeted, nothing matches, or the pattern is not a regular expression.
    fn select(
        &self,
        sites: &[Site],
        can_be_targeted: &impl Fn(&Site) -> bool,
        head: &str,
    ) -> Result<Vec<bool>, AdapterError> {
        let unmatched = |targets| Err(unmatched_targets(targets, sites, can_be_targeted));
        let matches: Vec<bool> = match self {
            Self::Names(names) => {
                let misplaced = |name: &&String| {
                    let mut named = sites.iter().filter(|site| is_suffix(&site.name, name)).peekable();
                    named.peek().is_some() && !named.any(can_be_targeted)
                };
                let misplaced: Vec<String> = names.iter().filter(misplaced).cloned().collect();
                if !misplaced.is_empty() {
                    return unmatched(misplaced);
                }
                self.matches(TARGETS, sites.iter())?
            }
            Self::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => {
                let linear = |site: &Site| matches!(site.kind, SiteKind::Linear { .. }) && site.name != head;
                sites.iter().map(linear).collect()
            }
            Self::Pattern(_) => self.matches(TARGETS, sites.iter())?,
        };
        let chosen: Vec<bool> =
            matches.into_iter().zip(sites).map(|(matches, site)| matches && can_be_targeted(site)).collect();
        if chosen.contains(&true) {
            return Ok(chosen);
        }
        match self {
            Self::Names(names) => unmatched(names.clone()),
            Self::Pattern(pattern) => unmatched(vec![pattern.clone()]),
        }
    }
}

/// Which sites an adapter attaches to; the fields are named as in `peft`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// The sites; those that are usual for the model if `None`.
    pub target_modules: Option<TargetModules>,
    /// Places that are left out of them.
    pub exclude_modules: Option<TargetModules>,
    /// The layers, counted from 0, that alone are adapted, if `target_modules` is a list of names.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What stands before the number of a layer in the names of sites; the first number counts if there is none.
    pub layers_pattern: Vec<String>,
}

impl<T: Into<TargetModules>> From<T> for Targets {
    fn from(target_modules: T) -> Self {
        Self { target_modules: Some(target_modules.into()), ..Self::default() }
    }
}

impl Targets {
    /// The names in `target_modules` that no site of the model has.
    ///
    /// A new adapter with one is refused by [`attach`](crate::Adapters::attach). One that is loaded is not: `peft` is content if
    /// another name matches, and writes the usual names of a family into files, of which a model may not have all.
    pub fn unmatched(&self, model: &ModelOutline) -> Vec<String> {
        let Some(TargetModules::Names(names)) = &self.target_modules else { return Vec::new() };
        let is_unmatched = |name: &&String| !model.sites.iter().any(|site| is_suffix(&site.name, name));
        names.iter().filter(is_unmatched).cloned().collect()
    }

    /// Refuses names that no site of the model has.
    ///
    /// # Errors
    /// If there is one; those sites are listed that could be meant.
    pub(crate) fn check_all_match(
        &self,
        model: &ModelOutline,
        can_be_targeted: impl Fn(&Site) -> bool,
    ) -> Result<(), AdapterError> {
        let targets = self.unmatched(model);
        if targets.is_empty() { Ok(()) } else { Err(unmatched_targets(targets, &model.sites, can_be_targeted)) }
    }

    /// The chosen ones among those sites of a model that can be. `usual` are the names where no targets are given,
    /// if any are usual.
    ///
    /// # Errors
    /// If nothing matches or is left, a name means only sites that cannot be targeted, or a pattern is not a regular
    /// expression.
    pub fn select<'a>(
        &self,
        model: &'a ModelOutline,
        can_be_targeted: impl Fn(&Site) -> bool,
        usual: &[&str],
    ) -> Result<Vec<&'a Site>, AdapterError> {
        let usual = (!usual.is_empty()).then(|| TargetModules::from(usual));
        let Some(targets) = self.target_modules.as_ref().or(usual.as_ref()) else {
            return Err(AdapterError::InvalidField {
                field: "target_modules",
                found: "not given".into(),
                expected: "names of layers, as nothing is usual for this kind of model",
            });
        };
        let mut chosen = targets.select(&model.sites, &can_be_targeted, model.shape.head)?;
        if let Some(excluded) = &self.exclude_modules {
            let excluded = excluded.matches("exclude_modules", model.sites.iter())?;
            chosen.iter_mut().zip(excluded).for_each(|(chosen, excluded)| *chosen &= !excluded);
        }
        if let (Some(layers), TargetModules::Names(names)) = (&self.layers_to_transform, targets) {
            let patterns = self.layer_patterns()?;
            for (chosen, site) in chosen.iter_mut().zip(&model.sites) {
                if names.contains(&site.name) {
                    continue; // A full name means just this layer.
                }
                let layer = layer_of(&site.name, &patterns)?;
                *chosen &= layer.is_some_and(|layer| layers.contains(&layer));
            }
        }
        let sites: Vec<&Site> =
            model.sites.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(site, _)| site).collect();
        if sites.is_empty() {
            let (found, expected) = ("such that nothing is left to adapt".into(), "something to leave");
            return Err(AdapterError::InvalidField {
                field: "exclude_modules or layers_to_transform",
                found,
                expected,
            });
        }
        Ok(sites)
    }

    fn layer_patterns(&self) -> Result<Vec<Pattern>, AdapterError> {
        if self.layers_pattern.is_empty() {
            return Ok(vec![Pattern::of_name_start("layers_pattern", "", r".*?\.[^.]*\.(?P<idx>\d+)\.")?]);
        }
        let pattern = |pattern: &String| {
            let expression = format!(r"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.");
            Pattern::of_name_start("layers_pattern", pattern, &expression)
        };
        self.layers_pattern.iter().map(pattern).collect()
    }

    /// Reads the fields that say where an adapter attaches.
    ///
    /// # Errors
    /// If one is ill-typed.
    pub fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        const EXPECTED: &str = "a list of names, a pattern, or \"all-linear\"";
        let layers = fields.optional::<OneOrMany<usize>>("layers_to_transform", "numbers of layers")?;
        let pattern = fields.optional::<OneOrMany<String>>("layers_pattern", "names")?;
        Ok(Self {
            target_modules: fields.optional(TARGETS, EXPECTED)?,
            exclude_modules: fields
                .optional::<TargetModules>("exclude_modules", EXPECTED)?
                .filter(|targets| !matches!(targets, TargetModules::Names(names) if names.is_empty())),
            layers_to_transform: layers.map(OneOrMany::into_vec).filter(|layers| !layers.is_empty()),
            layers_pattern: pattern.map(OneOrMany::into_vec).unwrap_or_default(),
        })
    }

    /// Writes them.
    pub fn write(&self, fields: &mut Map<String, Value>) {
        let none_if_empty = |list: &[String]| (!list.is_empty()).then(|| json!(list));
        fields.insert("target_modules".into(), json!(self.target_modules));
        fields.insert("exclude_modules".into(), json!(self.exclude_modules));
        fields.insert("layers_to_transform".into(), json!(self.layers_to_transform));
        fields.insert("layers_pattern".into(), json!(none_if_empty(&self.layers_pattern)));
    }
}

fn unmatched_targets(targets: Vec<String>, sites: &[Site], can_be_targeted: impl Fn(&Site) -> bool) -> AdapterError {
    let sites = sites.iter().filter(|site| can_be_targeted(site)).map(|site| site.name.clone()).collect();
    AdapterError::UnmatchedTargets { targets, sites }
}

/// A list, or its only element.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// The number of the layer that the first matching pattern finds in the name of a site.
fn layer_of(name: &str, patterns: &[Pattern]) -> Result<Option<usize>, AdapterError> {
    for pattern in patterns {
        if let Some(found) = pattern.captures(name)? {
            return Ok(found.name("idx").and_then(|number| number.as_str().parse().ok()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(targets: impl Into<Targets>) -> Result<Vec<String>, AdapterError> {
        let outline = ModelOutline::of_linear(&["encoder.0.q", "encoder.0.freq", "decoder.0.q", "lm_head"]);
        Ok(targets.into().select(&outline, Site::is_linear, &[])?.into_iter().map(|site| site.name.clone()).collect())
    }

    fn pattern(pattern: &str) -> TargetModules {
        TargetModules::Pattern(pattern.to_owned())
    }

    #[test]
    fn names_match_whole_components() {
        assert_eq!(select(["q"]).unwrap(), ["encoder.0.q", "decoder.0.q"], "`freq` is not `q`");
        assert_eq!(select(["encoder.0.q"]).unwrap(), ["encoder.0.q"]);
        assert_eq!(select(["lm_head"]).unwrap(), ["lm_head"]);
    }

    #[test]
    fn patterns_match_the_whole_name() {
        assert_eq!(select(pattern(r".*decoder.*\.(q|v)")).unwrap(), ["decoder.0.q"]);
        assert_eq!(select(TargetModules::all_linear()).unwrap().len(), 3, "the head is left out");
        let error = select(pattern("encoder")).unwrap_err();
        assert!(error.to_string().contains("encoder.0.freq"), "{error}");
    }

    #[test]
    fn some_name_must_match() {
        assert_eq!(select(["q", "query"]).unwrap(), select(["q"]).unwrap(), "as in peft");
        let error = select(["key", "query"]).unwrap_err().to_string();
        assert!(error.contains("[\"key\", \"query\"] match nothing"), "{error}");
        assert!(error.contains("decoder.0.q"), "the sites are listed: {error}");
        let error = select(pattern("(")).unwrap_err().to_string();
        assert!(error.starts_with("target_modules \"(\" is not a regular expression that is supported"), "{error}");
        assert!(select(TargetModules::Names(Vec::new())).is_err(), "an adapter without sites");
    }

    #[test]
    fn names_without_a_place_are_told() {
        let outline = ModelOutline::of_linear(&["encoder.0.q", "lm_head"]);
        let unmatched = |targets: Targets| targets.unmatched(&outline);
        assert_eq!(unmatched(["query", "q", "k"].into()), ["query", "k"]);
        for targets in [["q"].into(), pattern("k").into(), TargetModules::all_linear().into(), Targets::default()] {
            assert!(unmatched(targets).is_empty(), "what is not a name is whole or nothing");
        }
    }

    #[test]
    fn a_name_of_something_else_is_refused() {
        let mut outline = ModelOutline::of_linear(&["encoder.0.q", "encoder.0.norm"]);
        outline.sites[1].kind = SiteKind::Vector { len: 2 };
        let select = |targets: Targets| targets.select(&outline, Site::is_linear, &[]).map(|sites| sites.len());
        let error = select(["q", "norm"].into()).unwrap_err().to_string();
        assert!(error.contains("[\"norm\"] matches nothing") && error.ends_with("among: encoder.0.q"), "{error}");
        assert_eq!(select(["q", "standard"].into()).unwrap(), 1);
    }

    #[test]
    fn some_can_be_left_out() {
        let targets = Targets { exclude_modules: Some(["decoder.0.q"].into()), ..["q"].into() };
        assert_eq!(select(targets).unwrap(), ["encoder.0.q"]);
        let targets = Targets { exclude_modules: Some(pattern("(?!encoder).*q")), ..["q"].into() };
        assert_eq!(select(targets).unwrap(), ["encoder.0.q"]);
        let targets = Targets { exclude_modules: Some(pattern("(")), ..["q"].into() };
        assert!(select(targets).unwrap_err().to_string().starts_with("exclude_modules \"(\" is not a regular"));
        let targets = Targets { exclude_modules: Some(pattern(".*q")), ..["q"].into() };
        assert!(select(targets).unwrap_err().to_string().contains("nothing is left"));
    }

    #[test]
    fn some_layers_only() {
        let outline = ModelOutline::of_linear(&["encoder.block.0.layer.1.q", "encoder.block.1.layer.0.q", "head"]);
        let select = |layers_pattern: &[&str]| {
            let layers_pattern = layers_pattern.iter().map(|name| (*name).to_owned()).collect();
            let targets = Targets { layers_to_transform: Some(vec![1]), layers_pattern, ..["q"].into() };
            targets
                .select(&outline, Site::is_linear, &[])
                .unwrap()
                .into_iter()
                .map(|site| site.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(select(&[]), ["encoder.block.1.layer.0.q"], "the first number is the layer's");
        assert_eq!(select(&["block"]), ["encoder.block.1.layer.0.q"]);
        assert_eq!(select(&["layer"]), ["encoder.block.0.layer.1.q"]);
        assert_eq!(select(&["(b)lock"]), ["encoder.block.1.layer.0.q"], "groups of the pattern do not count");
    }
}
