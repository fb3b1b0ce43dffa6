//! What `vitc tune` has found: choices between equal kernels, in a text file beside the artifact that `run`, `bench` and the
//! library pick up. They are good for one artifact, one processor, one tier and one number of threads, and change no result.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vitc_codegen::{Choice, Choices, Split, Tier, Unit};

use crate::artifact;
use crate::io::atomic::write_atomically;

/// The findings for one artifact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Version of the vitc that found them.
    pub vitc: String,
    /// Content hash of the artifact.
    pub artifact: String,
    /// The processor, as the system names it.
    pub cpu: String,
    /// The tier's word.
    pub tier: String,
    /// Threads of the session.
    pub threads: usize,
    /// What is better than the cost model's choice, by kernel.
    pub kernels: BTreeMap<String, Finding>,
}

/// What is better for one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// `tiles`, `vectors` or `portable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What threads share: `rows` or `columns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Bytes of rows that are copied together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_bytes: Option<usize>,
    /// Whether weights of four bits are unpacked in every pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamed: Option<bool>,
    /// Milliseconds of all its calls for one image with the cost model's choice, and with this one; for people to read.
    pub ms: [f64; 2],
}

/// What lies beside an artifact.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Found {
    /// Nothing.
    #[default]
    Nothing,
    /// Findings for this artifact on this processor.
    Tuning(Tuning),
    /// Findings that do not hold here, and why.
    Ignored(String),
}

const UNITS: [(&str, Unit); 3] = [("tiles", Unit::Tiles), ("vectors", Unit::Vectors), ("portable", Unit::Portable)];
const SPLITS: [(&str, Split); 2] = [("rows", Split::Rows), ("columns", Split::Columns)];

fn word<T: PartialEq + Copy>(words: &[(&str, T)], value: Option<T>) -> Option<String> {
    value.and_then(|value| words.iter().find(|(_, v)| *v == value)).map(|(word, _)| (*word).to_owned())
}

fn named<T: Copy>(words: &[(&str, T)], word: Option<&String>) -> Result<Option<T>> {
    let known = |word: &String| words.iter().find(|(w, _)| w == word).map(|(_, v)| *v);
    word.map(|word| known(word).with_context(|| format!("'{word}' is not a choice"))).transpose()
}

impl Finding {
    /// A choice, and what it gains.
    pub fn of(choice: Choice, ms: [f64; 2]) -> Finding {
        let (unit, split) = (word(&UNITS, choice.unit), word(&SPLITS, choice.split));
        Finding { unit, split, copied_bytes: choice.copied_bytes, streamed: choice.streamed, ms }
    }

    fn choice(&self) -> Result<Choice> {
        let (unit, split) = (named(&UNITS, self.unit.as_ref())?, named(&SPLITS, self.split.as_ref())?);
        Ok(Choice { unit, split, copied_bytes: self.copied_bytes, streamed: self.streamed })
    }
}

impl Tuning {
    /// The file beside an artifact.
    pub fn path(artifact: &Path) -> PathBuf {
        let mut name = artifact.as_os_str().to_owned();
        name.push(".tune");
        name.into()
    }

    /// Writes the file beside an artifact, all or nothing.
    pub fn save(&self, artifact: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        write_atomically(&Tuning::path(artifact), |w| Ok(writeln!(w, "{text}")?))
    }

    /// The choices, if these findings are for this tier and number of threads.
    pub fn choices(&self, tier: Tier, threads: usize) -> Result<Choices, String> {
        if (self.tier.as_str(), self.threads) != (tier.word(), threads) {
            return Err(format!(
                "was made for the tier {} and {} threads, this is {} with {threads}",
                self.tier,
                self.threads,
                tier.word()
            ));
        }
        let choice = |(key, finding): (&String, &Finding)| Ok((key.clone(), finding.choice()?));
        let kernels: Result<BTreeMap<_, _>> = self.kernels.iter().map(choice).collect();
        Ok(Choices { kernels: kernels.map_err(|e| e.to_string())?, ..Choices::default() })
    }
}

impl Found {
    /// What lies beside an artifact, and whether it holds for it here.
    pub fn beside(artifact: &Path) -> Found {
        let path = Tuning::path(artifact);
        if !path.is_file() {
            return Found::Nothing;
        }
        let ignored = |why: String| Found::Ignored(format!("'{}' is not used: it {why}", path.display()));
        let read = std::fs::read_to_string(&path).map_err(anyhow::Error::from);
        let tuning: Tuning = match read.and_then(|text| Ok(serde_json::from_str(&text)?)) {
            Ok(tuning) => tuning,
            Err(e) => return ignored(format!("cannot be read: {e}")),
        };
        if hash_of(artifact).as_ref() != Some(&tuning.artifact) {
            return ignored("was made for another artifact; run `vitc tune` again".into());
        }
        if cpu() != tuning.cpu {
            return ignored(format!("was made on '{}', this is '{}'", tuning.cpu, cpu()));
        }
        Found::Tuning(tuning)
    }

    /// The choices for a tier and a number of threads, and why there are none where there is a file.
    pub(crate) fn choices(&self, tier: Tier, threads: usize) -> (Choices, Option<String>) {
        match self {
            Found::Nothing => (Choices::default(), None),
            Found::Ignored(why) => (Choices::default(), Some(why.clone())),
            Found::Tuning(tuning) => match tuning.choices(tier, threads) {
                Ok(choices) => (choices, None),
                Err(why) => (Choices::default(), Some(format!("what `vitc tune` found is not used: it {why}"))),
            },
        }
    }
}

/// The content hash of the artifact in this file.
pub fn hash_of(artifact: &Path) -> Option<String> {
    let mut head = [0; 64];
    std::fs::File::open(artifact).ok()?.read_exact(&mut head).ok()?;
    artifact::content_hash(&head)
}

/// The processor's name, or its architecture where the system has no name for it.
pub fn cpu() -> String {
    cpu_info("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// A line of `/proc/cpuinfo`, where there is one.
pub(crate) fn cpu_info(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |line: &str| line.split_once(':').filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().to_owned());
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning() -> Tuning {
        let choice = Choice {
            unit: Some(Unit::Vectors),
            split: Some(Split::Columns),
            copied_bytes: Some(1 << 17),
            streamed: Some(true),
        };
        let kernels = [("gemm_a".to_owned(), Finding::of(choice, [2.0, 1.5]))].into();
        Tuning { tier: "portable".into(), threads: 2, kernels, ..Tuning::default() }
    }

    #[test]
    fn findings_come_back_from_text_and_hold_for_their_tier_and_threads() {
        let text = serde_json::to_string_pretty(&tuning()).unwrap();
        assert!(text.contains("\"split\": \"columns\""), "{text}");
        let back: Tuning = serde_json::from_str(&text).unwrap();
        assert_eq!(back, tuning());
        let choices = back.choices(Tier::Portable, 2).unwrap();
        assert_eq!(choices.kernels["gemm_a"].split, Some(Split::Columns));
        assert!(back.choices(Tier::Portable, 1).unwrap_err().contains("2 threads"));
        assert!(back.choices(Tier::Baseline, 2).is_err());
        let mut wrong = tuning();
        wrong.kernels.get_mut("gemm_a").unwrap().unit = Some("magic".into());
        assert!(wrong.choices(Tier::Portable, 2).unwrap_err().contains("magic"));
    }

    #[test]
    fn a_file_that_does_not_fit_is_ignored_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = dir.path().join("m.vitc");
        let mut bytes = vec![0; 64];
        bytes[..8].copy_from_slice(b"VITCART\0");
        std::fs::write(&artifact, &bytes).unwrap();
        assert_eq!(Found::beside(&artifact), Found::Nothing);
        let why = |tuning: &Tuning| {
            tuning.save(&artifact).unwrap();
            match Found::beside(&artifact) {
                Found::Ignored(why) => why,
                other => format!("{other:?}"),
            }
        };
        assert!(why(&tuning()).contains("another artifact"));
        let of_this = Tuning { artifact: hash_of(&artifact).unwrap(), ..tuning() };
        assert!(why(&of_this).contains("was made on"));
        let here = Tuning { cpu: cpu(), ..of_this };
        assert!(why(&here).starts_with("Tuning("));
        std::fs::write(Tuning::path(&artifact), "{}").unwrap();
        assert!(matches!(Found::beside(&artifact), Found::Ignored(why) if why.contains("cannot be read")));
    }
}
