//! The way from the plainest quantization to the one asked for, a choice at a time.

use vitc_passes::quantize::{Observer, Rounding};
use vitc_passes::transform::Transform;

use crate::walk::WalkOptions;

/// A quantization on the way.
pub(crate) struct Rung {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) options: WalkOptions,
}

/// Everything seen as the range, weights to nearest, no transform; then with each transform that is asked for, in the order they
/// run. What is asked for itself comes after these and is no rung: it is what was compiled.
pub(crate) fn rungs(asked: &WalkOptions) -> Vec<Rung> {
    let plain = WalkOptions { observer: Observer::MinMax, rounding: Rounding::Nearest, ..asked.clone() };
    let wanted = |t: &(Transform, &str)| !is_left_out(asked, t.0);
    let words: Vec<_> = Transform::WORDS.into_iter().filter(wanted).collect();
    let rung = |so_far: usize| {
        let mut options = plain.clone();
        let later = words[so_far..].iter().map(|(t, _)| (*t, "*".to_string()));
        options.transforms.without.extend(later);
        let (name, what) = match so_far.checked_sub(1) {
            None => {
                ("min-max".into(), "the whole range of every value, weights rounded to nearest, no transform".into())
            }
            Some(i) => (format!("+ {}", words[i].1), format!("the stage before, and the transform {}", words[i].1)),
        };
        Rung { name, what, options }
    };
    (0..=words.len()).map(rung).collect()
}

/// Whether a transform runs nowhere.
fn is_left_out(options: &WalkOptions, transform: Transform) -> bool {
    options.transforms.without.iter().any(|(t, pattern)| *t == transform && pattern == "*")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitc_passes::transform::Choice;

    fn names(options: &WalkOptions) -> Vec<String> {
        rungs(options).into_iter().map(|r| r.name).collect()
    }

    #[test]
    fn a_rung_for_each_transform_that_runs() {
        let mut options = WalkOptions { observer: Observer::Mse, ..WalkOptions::default() };
        let words: Vec<String> = Transform::WORDS.iter().map(|(_, w)| format!("+ {w}")).collect();
        assert_eq!(names(&options), [vec!["min-max".to_string()], words.clone()].concat());
        options.transforms.without = vec![(Transform::WORDS[0].0, "*".into()), (Transform::WORDS[1].0, "/a*".into())];
        assert_eq!(names(&options), [vec!["min-max".to_string()], words[1..].to_vec()].concat());
        options.transforms = Choice::none();
        assert_eq!(names(&options), ["min-max"]);
    }

    #[test]
    fn rungs_add_up_to_what_is_asked_for() {
        let asked = WalkOptions { observer: Observer::Mse, ..WalkOptions::default() };
        let all = rungs(&asked);
        assert!(all.iter().all(|r| r.options.observer == Observer::MinMax && r.options.rounding == Rounding::Nearest));
        assert_eq!(all[0].options.transforms, Choice::none());
        assert_eq!(all.last().unwrap().options.transforms, asked.transforms);
    }
}
