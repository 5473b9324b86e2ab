//! Figures that are measured more than once, in turns.

use crate::failure::Failure;

/// The results of some runs; never empty.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len().is_multiple_of(2) {
            f64::midpoint(self.0[middle - 1], self.0[middle])
        } else {
            self.0[middle]
        }
    }

    pub(crate) fn least(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn runs(&self) -> usize {
        self.0.len()
    }

    /// The same runs, each converted.
    pub(crate) fn map(&self, expressed: impl Fn(f64) -> f64) -> Self {
        Self::from_runs(self.0.iter().copied().map(expressed).collect())
    }

    pub(crate) fn from_runs(mut results: Vec<f64>) -> Self {
        assert!(
            !results.is_empty(),
            "what was measured was measured at least once"
        );
        results.sort_by(f64::total_cmp);
        Self(results)
    }
}

/// As `in_turns`, for contenders that return several figures each, in the same order.
pub(crate) fn figures_in_turns<const N: usize, const M: usize>(
    what: &str,
    runs: u32,
    contenders: [&mut dyn FnMut(u32) -> Result<[f64; M], Failure>; N],
) -> Result<[[Samples; M]; N], Failure> {
    let mut results = [const { [const { Vec::new() }; M] }; N];
    for run in 0..runs {
        eprintln!("{what}: run {} of {runs}", run + 1);
        for turn in 0..N {
            let contender = (turn + run as usize) % N;
            let figures = contenders[contender](run)?;
            for (samples, figure) in results[contender].iter_mut().zip(figures) {
                samples.push(figure);
            }
        }
    }
    Ok(results.map(|figures| figures.map(Samples::from_runs)))
}

/// A contender: does one run, given its number, and returns its result.
pub(crate) type Contender<'a> = &'a mut dyn FnMut(u32) -> Result<f64, Failure>;

/// Measures all contenders once per run. Each run begins with another contender, so that changes of
/// the machine during the measurement affect all of them.
pub(crate) fn in_turns<const N: usize>(
    what: &str,
    runs: u32,
    contenders: [Contender<'_>; N],
) -> Result<[Samples; N], Failure> {
    let mut single = contenders.map(|contender| move |run| Ok([contender(run)?]));
    let single = single
        .each_mut()
        .map(|contender| contender as &mut dyn FnMut(u32) -> Result<[f64; 1], Failure>);
    Ok(figures_in_turns(what, runs, single)?.map(|[samples]| samples))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn each_run_begins_with_another_contender() {
        let order = std::cell::RefCell::new(Vec::new());
        let mut first = |run| {
            order.borrow_mut().push(("first", run));
            Ok(f64::from(run))
        };
        let mut second = |run| {
            order.borrow_mut().push(("second", run));
            Ok(10.0 * f64::from(run))
        };
        let [first, second] = in_turns("test", 2, [&mut first, &mut second]).unwrap();
        assert_eq!(
            *order.borrow(),
            [("first", 0), ("second", 0), ("second", 1), ("first", 1)]
        );
        assert_eq!((first.median(), second.median()), (0.5, 5.0));
    }

    #[test]
    fn the_median_is_the_middle() {
        let samples = Samples::from_runs(vec![9.0, 1.0, 5.0]);
        assert_eq!(
            (samples.least(), samples.median(), samples.most()),
            (1.0, 5.0, 9.0)
        );
    }
}
