use std::collections::HashSet;

use prune_core::SeedStream;

/// The options of NSGA-II; the defaults are Optuna's, which KVTuner's released search uses.
///
/// Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, with
/// its rule for constraints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nsga2 {
    /// Points of a generation.
    pub population: usize,
    /// Probability that a child mixes two parents; else it copies one.
    pub crossover: f64,
    /// Probability that a gene of a mixed child is the second parent's.
    pub swap: f64,
    /// Probability that a gene is drawn anew; one in the number of genes when absent.
    pub mutation: Option<f64>,
}

impl Default for Nsga2 {
    fn default() -> Self {
        Self { population: 50, crossover: 0.9, swap: 0.5, mutation: None }
    }
}

/// What a point is worth: two objectives, both minimised, and by how much it breaks the
/// constraint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fitness {
    pub(crate) objectives: [f64; 2],
    pub(crate) violation: f64,
}

impl Fitness {
    /// Deb's constrained domination: what keeps the constraint beats what does not, of two that
    /// break it the lesser violation wins, else the Pareto order decides.
    fn dominates(&self, other: &Self) -> bool {
        if self.violation > 0.0 || other.violation > 0.0 {
            return self.violation < other.violation;
        }
        let ([a, b], [c, d]) = (self.objectives, other.objectives);
        a <= c && b <= d && (a < c || b < d)
    }
}

#[derive(Debug, Clone)]
struct Individual {
    genes: Vec<usize>,
    fitness: Fitness,
    rank: usize,
    crowding: f64,
}

impl Nsga2 {
    /// Evaluates up to `evaluations` different points, each once, and returns them in the order of
    /// evaluation. Gene `i` is below `choices[i]`. The first generation is `start` and random
    /// points after it. A space no larger than `evaluations` is searched whole.
    pub(crate) fn run<E>(
        &self,
        choices: &[usize],
        start: Vec<Vec<usize>>,
        evaluations: usize,
        mut stream: SeedStream,
        mut evaluate: impl FnMut(&[usize]) -> Result<Fitness, E>,
    ) -> Result<(), E> {
        let size = choices.iter().try_fold(1usize, |n, c| n.checked_mul(*c));
        if let Some(size) = size.filter(|n| *n <= evaluations) {
            for index in 0..size {
                evaluate(&digits(index, choices))?;
            }
            return Ok(());
        }
        let mut seen = HashSet::new();
        let mut first: Vec<Vec<usize>> = Vec::new();
        for genes in start {
            if first.len() < self.population.min(evaluations) && seen.insert(genes.clone()) {
                first.push(genes);
            }
        }
        while first.len() < self.population.min(evaluations) {
            first.push(self.unseen(random(choices, &mut stream), choices, &mut seen, &mut stream));
        }
        let mut left = evaluations;
        let mut population = Vec::new();
        let mut children = first;
        loop {
            left -= children.len();
            for genes in children {
                let fitness = evaluate(&genes)?;
                population.push(Individual { genes, fitness, rank: 0, crowding: 0.0 });
            }
            population = survivors(population, self.population);
            if left == 0 {
                return Ok(());
            }
            children = (0..self.population.min(left))
                .map(|_| {
                    let child = self.child(&population, choices, &mut stream);
                    self.unseen(child, choices, &mut seen, &mut stream)
                })
                .collect();
        }
    }

    fn child(
        &self,
        parents: &[Individual],
        choices: &[usize],
        stream: &mut SeedStream,
    ) -> Vec<usize> {
        let mut child = tournament(parents, stream).genes.clone();
        if stream.uniform() < self.crossover {
            let second = &tournament(parents, stream).genes;
            for (gene, other) in child.iter_mut().zip(second) {
                if stream.uniform() < self.swap {
                    *gene = *other;
                }
            }
        }
        self.mutate(&mut child, choices, stream);
        child
    }

    fn mutate(&self, genes: &mut [usize], choices: &[usize], stream: &mut SeedStream) {
        let rate = self.mutation.unwrap_or(1.0 / genes.len().max(1) as f64);
        for (gene, choices) in genes.iter_mut().zip(choices) {
            if stream.uniform() < rate {
                *gene = stream.below(*choices as u64) as usize;
            }
        }
    }

    /// `genes`, changed until they are a point that was not evaluated: an evaluation is too dear
    /// to be repeated. There is such a point, for the space is larger than the evaluations.
    fn unseen(
        &self,
        mut genes: Vec<usize>,
        choices: &[usize],
        seen: &mut HashSet<Vec<usize>>,
        stream: &mut SeedStream,
    ) -> Vec<usize> {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            if seen.insert(genes.clone()) {
                return genes;
            }
            self.mutate(&mut genes, choices, stream);
        }
        // Count upwards from here: ends at a new point for certain.
        while !seen.insert(genes.clone()) {
            for (gene, choices) in genes.iter_mut().zip(choices) {
                *gene = (*gene + 1) % choices;
                if *gene != 0 {
                    break;
                }
            }
        }
        genes
    }
}

fn random(choices: &[usize], stream: &mut SeedStream) -> Vec<usize> {
    choices.iter().map(|c| stream.below(*c as u64) as usize).collect()
}

/// The point of this index when all are counted, the first gene fastest.
fn digits(mut index: usize, choices: &[usize]) -> Vec<usize> {
    let digit = |c: &usize| {
        let digit = index % c;
        index /= c;
        digit
    };
    choices.iter().map(digit).collect()
}

/// The better of two: the lower front, then the less crowded.
fn tournament<'a>(parents: &'a [Individual], stream: &mut SeedStream) -> &'a Individual {
    let mut draw = || &parents[stream.below(parents.len() as u64) as usize];
    let (a, b) = (draw(), draw());
    let better = b.rank < a.rank || b.rank == a.rank && b.crowding > a.crowding;
    if better { b } else { a }
}

/// The best `count`, front by front, the last front by falling crowding distance.
fn survivors(mut all: Vec<Individual>, count: usize) -> Vec<Individual> {
    let mut left: Vec<usize> = (0..all.len()).collect();
    let mut rank = 0;
    while !left.is_empty() {
        let (front, rest): (Vec<usize>, Vec<usize>) = left
            .iter()
            .partition(|i| !left.iter().any(|j| all[*j].fitness.dominates(&all[**i].fitness)));
        for (i, distance) in front.iter().zip(crowding(&all, &front)) {
            (all[*i].rank, all[*i].crowding) = (rank, distance);
        }
        left = rest;
        rank += 1;
    }
    // Stable: earlier points win ties, so that the result is reproducible.
    all.sort_by(|a, b| a.rank.cmp(&b.rank).then(b.crowding.total_cmp(&a.crowding)));
    all.truncate(count);
    all
}

/// The sum over objectives of the gap between the neighbours of each point, in units of the front's
/// range; infinite at the ends.
fn crowding(all: &[Individual], front: &[usize]) -> Vec<f64> {
    let mut distances = vec![0.0; front.len()];
    for objective in 0..2 {
        let value = |position: usize| all[front[position]].fitness.objectives[objective];
        let mut order: Vec<usize> = (0..front.len()).collect();
        order.sort_by(|a, b| value(*a).total_cmp(&value(*b)));
        let (Some(first), Some(last)) = (order.first(), order.last()) else { continue };
        let range = value(*last) - value(*first);
        (distances[*first], distances[*last]) = (f64::INFINITY, f64::INFINITY);
        for window in order.windows(3) {
            if range > 0.0 {
                distances[window[1]] += (value(window[2]) - value(window[0])) / range;
            }
        }
    }
    distances
}

#[cfg(test)]
mod tests {
    use super::*;
    use prune_core::Seed;

    fn fitness(a: f64, b: f64, violation: f64) -> Fitness {
        Fitness { objectives: [a, b], violation }
    }

    #[test]
    fn domination_puts_the_constraint_first() {
        assert!(fitness(5.0, 5.0, 0.0).dominates(&fitness(1.0, 1.0, 0.1)));
        assert!(fitness(5.0, 5.0, 0.1).dominates(&fitness(1.0, 1.0, 0.2)));
        assert!(fitness(1.0, 2.0, 0.0).dominates(&fitness(1.0, 3.0, 0.0)));
        assert!(!fitness(1.0, 2.0, 0.0).dominates(&fitness(1.0, 2.0, 0.0)));
        assert!(!fitness(1.0, 3.0, 0.0).dominates(&fitness(2.0, 2.0, 0.0)));
    }

    #[test]
    fn crowding_is_that_of_the_paper() {
        let all: Vec<Individual> = [(0.0, 4.0), (1.0, 2.0), (4.0, 0.0)]
            .map(|(a, b)| Individual {
                genes: vec![],
                fitness: fitness(a, b, 0.0),
                rank: 0,
                crowding: 0.0,
            })
            .into();
        assert_eq!(crowding(&all, &[0, 1, 2]), [f64::INFINITY, 2.0, f64::INFINITY]);
    }

    #[test]
    fn every_point_is_evaluated_once_and_a_small_space_whole() {
        for evaluations in [1, 7, 40, 60] {
            let mut points = HashSet::new();
            let choices = [3, 1, 4, 4];
            let search = Nsga2 { population: 8, ..Nsga2::default() };
            search
                .run(&choices, vec![vec![0; 4]], evaluations, Seed::new(1).stream("t"), |g| {
                    assert!(points.insert(g.to_vec()));
                    let sum = g.iter().sum::<usize>() as f64;
                    Ok::<_, ()>(fitness(sum, -sum, 0.0))
                })
                .unwrap();
            assert_eq!(points.len(), evaluations.min(48));
        }
    }
}
