//! Two published data sets of dialogues with summaries.

use crate::{columns::Columns, dataset::Dataset, template::Template};

fn strings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(String::from).to_vec()
}

/// The names that people give to a split of a data set: each of `splits`, also behind the name of the set.
fn usual_names(dataset: &str, splits: &[&str]) -> Vec<String> {
    let of_split = |split: &&str| {
        let prefixed = ["_", "-", "."].map(|between| format!("{dataset}{between}{split}"));
        [split.to_string()].into_iter().chain(prefixed)
    };
    splits.iter().flat_map(of_split).collect()
}

const TRAIN: [&str; 2] = ["train", "training"];
const VALIDATION: [&str; 4] = ["validation", "valid", "val", "dev"];
const TEST: [&str; 1] = ["test"];

fn summarize() -> Template {
    Template::preset("dialogsum").expect("a template, as a test has seen")
}

impl Dataset {
    /// DialogSum: daily-life dialogues with human summaries; three references for each test dialogue.
    ///
    /// Chen, Liu, Chen and Zhang, *DialogSum: A Real-Life Scenario Dialogue Summarization Dataset*, Findings of
    /// ACL-IJCNLP 2021. The whole set has 12,460 training, 500 validation and 500 test dialogues.
    ///
    /// It is read in the hub's layout (`train.csv`, `dialogsum_train.csv` or `train-00000-of-00001.parquet`, where a dialogue
    /// with several references stands once for each, as `test_7_1`, `test_7_2`, `test_7_3`) and in the original one
    /// (`dialogsum.train.jsonl`, `dialogsum.dev.jsonl`, where they are `summary1`, `summary2`, `summary3` of one object).
    /// Splits are called `train` or `training`, `validation`, `valid`, `val` or `dev`, and `test`, also behind `dialogsum`
    /// and an underscore, a hyphen or a full stop. Fields are `dialogue` and, where it is given, `topic`.
    pub fn dialogsum() -> Self {
        Self {
            name: "DialogSum".to_owned(),
            columns: Columns {
                id: strings(["fname", "id"]),
                optional: strings(["topic"]),
                numbered_ids: true,
                ..Columns::new(["dialogue"], "summary")
            },
            train: usual_names("dialogsum", &TRAIN),
            validation: usual_names("dialogsum", &VALIDATION),
            test: usual_names("dialogsum", &TEST),
            template: summarize(),
        }
    }

    /// SAMSum: chats that linguists wrote, with a summary each.
    ///
    /// Gliwa, Mochol, Biesek and Wawer, *SAMSum Corpus: A Human-annotated Dialogue Dataset for Abstractive
    /// Summarization*, Workshop on New Frontiers in Summarization 2019. The whole set has 14,732 training, 818
    /// validation and 819 test dialogues.
    ///
    /// It is read in the original layout (`corpus.7z`, and what is in it: `train.json`, `val.json`, `test.json`, each an
    /// array of objects with `id`, `dialogue` and `summary`), and as the JSON Lines, the CSV and the Parquet made of it
    /// (`train.jsonl`, `samsum-validation.csv`); names are as for [`dialogsum`](Self::dialogsum). The one record with an empty
    /// dialogue, training example 13828807, is skipped and reported.
    pub fn samsum() -> Self {
        Self {
            name: "SAMSum".to_owned(),
            columns: Columns { skip: strings(["13828807"]), ..Columns::new(["dialogue"], "summary") },
            train: usual_names("samsum", &TRAIN),
            validation: usual_names("samsum", &VALIDATION),
            test: usual_names("samsum", &TEST),
            template: summarize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fields;

    #[test]
    fn the_templates_ask_for_a_summary_of_the_dialogue() {
        for dataset in [Dataset::dialogsum(), Dataset::samsum()] {
            let fields = Fields::from([("dialogue".to_owned(), "A: é".to_owned())]);
            let prompt = dataset.template.render(&fields).unwrap();
            assert_eq!(prompt, "Summarize the following conversation.\n\nA: é\n\nSummary: ");
            assert_eq!(dataset.columns.required, ["dialogue"]);
        }
    }
}
