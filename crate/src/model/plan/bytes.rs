//! Numbers of bytes, and what is held while a computation is walked through.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};
use std::rc::Rc;

use serde::{Serialize, Serializer};

use crate::model::plan::Target;

/// What a tensor in host memory costs beside its values: its name, its shapes, the allocator's own.
pub(super) const OVERHEAD: u64 = 512;

/// A number of bytes. It stops at 2^53 - 1, the largest whole number that JavaScript has, instead of wrapping: what
/// comes out of too large a request is still too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(u64);

impl Bytes {
    const MOST: u64 = (1 << 53) - 1;

    /// That many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(bytes.min(Self::MOST))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// f32 values of a tensor of this shape.
    pub(super) fn f32s(shape: &[u64]) -> Self {
        Self::new(shape.iter().fold(4, |product, &length| product.saturating_mul(length)))
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::new(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;

    fn mul(self, factor: u64) -> Self {
        Self::new(self.0.saturating_mul(factor))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            bytes if bytes < 1 << 10 => format!("{bytes} B"),
            bytes if bytes < 1 << 20 => format!("{:.1} KiB", bytes as f64 / 1024.0),
            bytes => format!("{:.2} MiB", bytes as f64 / 1_048_576.0),
        };
        f.pad(&text)
    }
}

/// The shortest page of the GPU's allocator. It begins with 16 KiB and follows the mean of what is asked for.
const SHORTEST_PAGE: u64 = 8 << 10;

/// What a piece of GPU memory of so many bytes takes.
pub(super) fn page(bytes: u64) -> u64 {
    bytes.max(SHORTEST_PAGE)
}

/// The pages of a GPU's allocator, as cubecl's `ExclusivePools` keeps them, which is what a browser has: one tensor each,
/// kept once they are free, and given to what comes next and fits.
#[derive(Default)]
pub(super) struct Pages {
    total: Cell<u64>,
    /// How many there are of each length.
    free: RefCell<BTreeMap<u64, u64>>,
}

impl Pages {
    /// Bytes of all pages.
    pub(super) fn total(&self) -> Bytes {
        Bytes::new(self.total.get())
    }

    /// Gives the free ones back.
    pub(super) fn forget(&self) {
        let free: u64 = self.free.take().into_iter().map(|(length, count)| length.saturating_mul(count)).sum();
        self.total.set(self.total.get().saturating_sub(free));
    }

    fn take(&self, bytes: u64) -> u64 {
        let mut free = self.free.borrow_mut();
        let found = free.range(bytes..).next().map(|(&length, &count)| (length, count));
        match found {
            Some((length, 1)) => drop(free.remove(&length)),
            Some((length, count)) => drop(free.insert(length, count - 1)),
            None => self.total.set(self.total.get().saturating_add(page(bytes))),
        }
        found.map_or(page(bytes), |(length, _)| length)
    }
}

/// Bytes that a walk holds.
pub(super) struct Held {
    count: Rc<Count>,
    bytes: u64,
    pages: Option<Rc<Pages>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.now.set(self.count.now.get() - self.bytes);
        if let Some(pages) = &self.pages {
            *pages.free.borrow_mut().entry(self.bytes).or_default() += 1;
        }
    }
}

#[derive(Default)]
struct Count {
    now: Cell<u64>,
    peak: Cell<u64>,
}

/// What computes, and the memory it has; walks of one clip share it.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) target: Target,
    /// On a GPU.
    pages: Option<Rc<Pages>>,
}

impl Machine {
    pub(super) fn new(target: Target) -> Self {
        Self { target, pages: (target == Target::Gpu).then(Rc::default) }
    }

    /// Bytes of all pages; 0 on the CPU.
    pub(super) fn pages(&self) -> Bytes {
        self.pages.as_ref().map_or(Bytes::default(), |pages| pages.total())
    }

    /// Gives back what is free.
    pub(super) fn forget(&self) {
        if let Some(pages) = &self.pages {
            pages.forget();
        }
    }
}

/// A walk through operations in their order: tensors are held as long as the values that stand for them live.
pub(super) struct Walk {
    machine: Machine,
    count: Rc<Count>,
    largest: Cell<u64>,
    /// What computes.
    pub(super) target: Target,
    /// Whether LoRAs lie beside the linear layers.
    pub(super) lora: bool,
}

impl Walk {
    pub(super) fn new(machine: &Machine, lora: bool) -> Self {
        let count = Rc::default();
        Self { machine: machine.clone(), count, largest: Cell::new(0), target: machine.target, lora }
    }

    pub(super) fn on_gpu(&self) -> bool {
        self.target == Target::Gpu
    }

    /// Bytes in one piece that are held as long as the result lives.
    pub(super) fn hold(&self, bytes: Bytes) -> Held {
        self.largest.set(self.largest.get().max(bytes.get()));
        self.held(bytes.get() + if self.on_gpu() { 0 } else { OVERHEAD })
    }

    fn held(&self, bytes: u64) -> Held {
        let pages = self.machine.pages.clone();
        let bytes = pages.as_ref().map_or(bytes, |pages| pages.take(bytes));
        let Count { now, peak } = &*self.count;
        now.set(now.get().saturating_add(bytes));
        peak.set(peak.get().max(now.get()));
        Held { count: self.count.clone(), bytes, pages }
    }

    /// A tensor of f32.
    pub(super) fn tensor(&self, shape: &[u64]) -> Held {
        self.hold(Bytes::f32s(shape))
    }

    /// Bytes that are held for a moment, in pieces of any size.
    pub(super) fn during(&self, bytes: Bytes) {
        drop(self.held(bytes.get()));
    }

    /// The bytes that are held.
    pub(super) fn now(&self) -> Bytes {
        Bytes::new(self.count.now.get())
    }

    /// The most bytes that were held.
    pub(super) fn peak(&self) -> Bytes {
        Bytes::new(self.count.peak.get())
    }

    /// The longest single piece.
    pub(super) fn largest(&self) -> Bytes {
        Bytes::new(self.largest.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_products_stop_instead_of_wrapping() {
        let most = Bytes::new(u64::MAX);
        assert_eq!(most.get(), (1 << 53) - 1);
        assert_eq!(most + most, most);
        assert_eq!(most * 9, most);
        assert_eq!(Bytes::f32s(&[u64::MAX, 2, 3]), most);
        assert_eq!([Bytes::new(3), Bytes::new(4)].into_iter().sum::<Bytes>(), Bytes::new(7));
    }

    #[test]
    fn a_walk_remembers_the_most() {
        let walk = Walk::new(&Machine::new(Target::Cpu { threads: 1 }), false);
        let first = walk.tensor(&[10]);
        walk.during(Bytes::new(100));
        drop(first);
        let _second = walk.tensor(&[5, 5]);
        assert_eq!((walk.peak(), walk.largest()), (Bytes::new(OVERHEAD + 140), Bytes::new(100)));
        assert_eq!(walk.machine.pages(), Bytes::default());
    }

    #[test]
    fn pages_stay_and_are_taken_by_what_fits() {
        let machine = Machine::new(Target::Gpu);
        let (walk, bytes) = (Walk::new(&machine, false), |kib: u64| Bytes::new(kib << 10));
        let (long, short) = (walk.hold(bytes(100)), walk.hold(bytes(20)));
        drop((long, short));
        // The shortest that is long enough; a page is taken as a whole.
        let other = Walk::new(&machine, false);
        let fits = other.hold(bytes(15));
        assert_eq!((machine.pages(), other.now()), (bytes(120), bytes(20)));
        let none = other.hold(bytes(101));
        assert_eq!((machine.pages(), other.peak()), (bytes(221), bytes(121)));
        let tiny = other.hold(Bytes::new(4));
        assert_eq!(other.now(), bytes(221), "the page of 100 KiB was free");
        drop((fits, none));
        machine.forget();
        assert_eq!(machine.pages(), bytes(100));
        drop(tiny);
        assert_eq!(Bytes::new(page(4)), bytes(8));
    }
}
