//! The greedy, its correction by joint losses, and the bisection on its path.

use vitc_ir::Diagnostic;

use super::knobs::Kind;
use super::measure::Loss;

/// What is searched for.
pub struct Problem<'a> {
    /// For each knob its kind, and losses at its bits.
    pub knobs: &'a [(Kind, Vec<(u32, f64)>)],
    /// What a step saves is counted in this cost of a state.
    pub cost: &'a dyn Fn(&[u32]) -> f64,
    /// When it ends.
    pub limit: Limit<'a>,
}

/// When the greedy ends.
pub enum Limit<'a> {
    /// When this cost of a state is at most so much.
    Cost {
        /// The cost.
        of: &'a dyn Fn(&[u32]) -> f64,
        /// Its most.
        most: f64,
        /// The cost in words, for messages.
        words: &'a dyn Fn(f64) -> String,
    },
    /// Before agreement is this many points below that of 8 bits everywhere.
    Drop(f64),
}

/// One knob lowered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its number.
    pub knob: usize,
    /// Its bits before.
    pub from: u32,
    /// Its bits after.
    pub to: u32,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Bits of each knob.
    pub state: Vec<u32>,
    /// The joint loss of 8 bits everywhere.
    pub start: Loss,
    /// The joint loss of the state.
    pub loss: Loss,
    /// For each knob the loss that is ascribed to its bits, corrected by what was measured.
    pub losses: Vec<f64>,
    /// For each knob the next fewer bits that would have saved anything, with the loss they would add.
    pub refused: Vec<Option<(u32, f64)>>,
    /// How many states were measured.
    pub measured: usize,
}

/// How often the table is corrected. The factors hardly move after the first time.
const ROUNDS: usize = 2;

/// Looks for the state with the least loss within the limit. `measure` tells the joint loss of a state.
pub fn search<E: From<Diagnostic>>(
    problem: &Problem<'_>,
    measure: &mut dyn FnMut(&[u32]) -> Result<Loss, E>,
) -> Result<Outcome, E> {
    let table = Table::of(problem.knobs);
    let mut measured = 0;
    let mut joint = |state: &[u32]| {
        measured += 1;
        measure(state)
    };
    if let Limit::Cost { of, most, .. } = &problem.limit {
        let (least, _) = table.greedy(problem, &|state| of(state) <= *most);
        check(&problem.limit, &table.start(), &least)?;
    }
    let start = joint(&table.start())?;
    let (table, state, loss) = match &problem.limit {
        Limit::Cost { of, most, .. } => within_cost(problem, table, &|state| of(state) <= *most, start, &mut joint)?,
        Limit::Drop(most) => within_drop(problem, table, *most, start, &mut joint)?,
    };
    let refused = (0..state.len()).map(|k| table.next(problem, &state, k)).collect();
    let losses = (0..state.len()).map(|k| table.loss(k, state[k])).collect();
    Ok(Outcome { state, start, loss, losses, refused, measured })
}

/// Losses of knobs, never falling with the bits, and a factor for each kind.
#[derive(Clone, Debug)]
struct Table {
    kinds: Vec<Kind>,
    /// Bits, falling, with their losses.
    losses: Vec<Vec<(u32, f64)>>,
    /// Of [`Kind::Weights`] and of [`Kind::Inputs`].
    factors: [f64; 2],
}

impl Table {
    fn of(knobs: &[(Kind, Vec<(u32, f64)>)]) -> Table {
        let rising = |losses: &Vec<(u32, f64)>| {
            let mut losses = losses.clone();
            losses.sort_by_key(|(bits, _)| std::cmp::Reverse(*bits));
            let mut most = 0f64;
            for (_, loss) in &mut losses {
                most = most.max(*loss);
                *loss = most;
            }
            losses
        };
        let kinds = knobs.iter().map(|(kind, _)| *kind).collect();
        Table { kinds, losses: knobs.iter().map(|(_, losses)| rising(losses)).collect(), factors: [1.0; 2] }
    }

    fn start(&self) -> Vec<u32> {
        self.losses.iter().map(|l| l.first().map_or(8, |(bits, _)| *bits)).collect()
    }

    fn factor(&mut self, kind: Kind) -> &mut f64 {
        &mut self.factors[usize::from(kind == Kind::Inputs)]
    }

    fn loss(&self, knob: usize, bits: u32) -> f64 {
        let known = self.losses[knob].iter().find(|(b, _)| *b == bits);
        known.map_or(0.0, |(_, loss)| loss * self.factors[usize::from(self.kinds[knob] == Kind::Inputs)])
    }

    /// The sum of what knobs lose in a state beyond their start.
    fn added(&self, state: &[u32]) -> f64 {
        let start = self.start();
        (0..state.len()).map(|k| self.loss(k, state[k]) - self.loss(k, start[k])).sum()
    }

    /// The step of one knob that loses least for what it saves, if any saves anything.
    fn best(&self, problem: &Problem<'_>, state: &[u32], knob: usize) -> Option<(f64, Step)> {
        let (from, now, mut changed) = (state[knob], (problem.cost)(state), state.to_vec());
        let mut ratio = |&(to, _): &(u32, f64)| {
            changed[knob] = to;
            let saved = now - (problem.cost)(&changed);
            let lost = self.loss(knob, to) - self.loss(knob, from);
            (saved > 0.0).then_some((lost / saved, Step { knob, from, to }))
        };
        let lower = self.losses[knob].iter().filter(|(bits, _)| *bits < from);
        lower.filter_map(&mut ratio).min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// The first width below a knob's that would save something, and what it would add.
    fn next(&self, problem: &Problem<'_>, state: &[u32], knob: usize) -> Option<(u32, f64)> {
        let step = self.best(problem, state, knob)?.1;
        Some((step.to, self.loss(knob, step.to) - self.loss(knob, step.from)))
    }

    /// Lowers knobs until `enough` or until nothing saves anything. Of equals the first knob is lowered.
    fn greedy(&self, problem: &Problem<'_>, enough: &dyn Fn(&[u32]) -> bool) -> (Vec<u32>, Vec<Step>) {
        let (mut state, mut path) = (self.start(), Vec::new());
        while !enough(&state) {
            let steps = (0..state.len()).filter_map(|k| self.best(problem, &state, k));
            let Some((_, step)) = steps.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            state[step.knob] = step.to;
            path.push(step);
        }
        (state, path)
    }

    /// Takes steps back that the limit does not need, those that lose most first: the last one may have saved more than
    /// was left to save.
    fn given_back(&self, mut state: Vec<u32>, path: &[Step], enough: &dyn Fn(&[u32]) -> bool) -> Vec<u32> {
        loop {
            let lost = |s: &&Step| self.loss(s.knob, s.to) - self.loss(s.knob, s.from);
            let spare = path.iter().filter(|s| state[s.knob] == s.to && lost(s) > 0.0).filter(|s| {
                let mut without = state.clone();
                without[s.knob] = s.from;
                enough(&without)
            });
            let Some(step) = spare.max_by(|a, b| lost(a).total_cmp(&lost(b))) else { return state };
            state[step.knob] = step.from;
        }
    }
}

type Joint<'j, E> = dyn FnMut(&[u32]) -> Result<Loss, E> + 'j;

/// Greedy to the limit, then again with each half of the table scaled to what it loses in truth; the best is kept.
fn within_cost<E: From<Diagnostic>>(
    problem: &Problem<'_>,
    mut table: Table,
    enough: &dyn Fn(&[u32]) -> bool,
    start: Loss,
    joint: &mut Joint<'_, E>,
) -> Result<(Table, Vec<u32>, Loss), E> {
    let mut best: Option<(Table, Vec<u32>, Loss)> = None;
    for round in 0..=ROUNDS {
        let (state, path) = table.greedy(problem, enough);
        let state = table.given_back(state, &path, enough);
        if best.as_ref().is_some_and(|(_, known, _)| *known == state) {
            break;
        }
        let loss = if state == table.start() { start } else { joint(&state)? };
        if best.as_ref().is_none_or(|(_, _, least)| loss.divergence < least.divergence) {
            best = Some((table.clone(), state.clone(), loss));
        }
        if round < ROUNDS {
            table = corrected(table, &state, start, joint)?;
        }
    }
    best.ok_or_else(|| Diagnostic::new("mixed", "no state was found").into())
}

/// Each half of the table scaled so that its sum is what that half of a state loses together.
fn corrected<E>(mut table: Table, state: &[u32], start: Loss, joint: &mut Joint<'_, E>) -> Result<Table, E> {
    for kind in [Kind::Weights, Kind::Inputs] {
        let alone = |k: usize| if table.kinds[k] == kind { state[k] } else { table.start()[k] };
        let half: Vec<u32> = (0..state.len()).map(alone).collect();
        let predicted = table.added(&half);
        if predicted <= 0.0 {
            continue;
        }
        let added = joint(&half)?.divergence - start.divergence;
        // what is within the noise of the measurement must not become free
        *table.factor(kind) *= (added / predicted).clamp(0.1, 10.0);
    }
    Ok(table)
}

/// The farthest point of the greedy path, among those of a bisection, at which agreement has not dropped too far.
fn within_drop<E: From<Diagnostic>>(
    problem: &Problem<'_>,
    table: Table,
    most: f64,
    start: Loss,
    joint: &mut Joint<'_, E>,
) -> Result<(Table, Vec<u32>, Loss), E> {
    let (_, path) = table.greedy(problem, &|_| false);
    let after = |steps: usize| {
        let mut state = table.start();
        path[..steps].iter().for_each(|s| state[s.knob] = s.to);
        state
    };
    let (mut good, mut bad, mut loss) = (0, path.len() + 1, start);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        let found = joint(&after(middle))?;
        match start.agreement - found.agreement <= most + 1e-9 {
            true => (good, loss) = (middle, found),
            false => bad = middle,
        }
    }
    let state = after(good);
    Ok((table, state, loss))
}

/// Whether the state of the fewest bits is within a limit, which can be told before anything is measured.
pub fn check(limit: &Limit<'_>, start: &[u32], least: &[u32]) -> Result<(), Diagnostic> {
    let Limit::Cost { of, most, words } = limit else { return Ok(()) };
    if of(least) <= *most {
        return Ok(());
    }
    let [most, start, least] = [*most, of(start), of(least)].map(words);
    let message =
        format!("the target of {most} cannot be reached: 8 bits everywhere are {start}, the fewest bits {least}");
    Err(Diagnostic::new("mixed", message).help("ask for no less than that"))
}
