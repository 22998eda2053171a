//! Giving way: how uploads share the host with clients.
//!
//! While clients are busy uploads work and rest by turns. What clients get done in a turn of work is compared with what
//! they get done in the rests around it, in requests and in latency; the difference is what the uploads cost, whatever it
//! is that both want: processors, the device, the network, a store on the same host. The more they cost, the longer
//! they rest, so that clients lose no more than the part that the configuration allows (`background.copy_cost`).
//!
//! Invariants: uploads rest only while clients are busy, and however much they cost they work for that same part of the
//! time: a copy always comes to its end; a turn has at least one chunk, whole.
//! Absent: limits in bytes per second (`Pacer`); disks that are being filled, which give way in their own manner
//! (`fill.rs`).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::meters::Served;

/// Requests per second from which on clients are busy. A disk that is merely mounted has a few; what these few
/// notice of an upload is the one chunk before them.
const BUSY: f64 = 50.0;
/// How often it is looked whether clients have become busy.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// No chunk begins later than this in a turn while clients are busy.
const TURN: Duration = Duration::from_millis(20);
/// Rests are long enough to see what clients do in them, and end before a store takes a connection for idle.
const REST_MIN: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(10);
/// Without any rest nothing could be compared.
const SHARE_MAX: f64 = 0.9;
/// What uploads are taken to cost before anything is known.
const COST_AT_FIRST: f64 = 0.5;
/// How much one comparison counts, and with how many requests in the turn it counts in full.
const WEIGHT: f64 = 0.25;
const REQUESTS_IN_FULL: f64 = 50.0;
/// So long after the last upload the next one begins anew.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// Who may not begin asks again after so long at the latest.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// And after so long while others have to end first.
const ASK_SOON: Duration = Duration::from_millis(2);

/// What somebody who wants to send a chunk is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begin,
    /// Ask again after that time: clients go first.
    Wait(Duration),
    /// Ask again after that time: nothing is known of clients yet.
    Look(Duration),
}

/// The turns of all uploads.
#[derive(Debug)]
pub(super) struct Courtesy {
    /// The part of what clients do that uploads may cost them, and the part of the time they have at least.
    allowed: f64,
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    under_way: usize,
    /// Chunks begun in this turn.
    begun: usize,
    /// Until when uploads rest, if they do.
    rest: Option<Instant>,
    /// They rest before their first turn.
    looking: bool,
    /// The beginning of this turn, or of this rest.
    since: Mark,
    looked: Mark,
    busy: bool,
    /// What clients did in the last turn and in the rest before it.
    turn: Option<Pace>,
    rested: Option<Pace>,
    fewer: f64,
    later: f64,
    /// When somebody last asked or ended.
    heard: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    served: Served,
}

/// What clients got done in a stretch of time.
#[derive(Clone, Copy, Debug)]
struct Pace {
    seconds: f64,
    requests: f64,
    /// Of a request, on average.
    latency: f64,
}

impl Mark {
    fn pace(&self, now: &Mark) -> Pace {
        let requests = now.served.requests.saturating_sub(self.served.requests) as f64;
        let nanos = now.served.nanos.saturating_sub(self.served.nanos) as f64;
        let seconds = now.at.saturating_duration_since(self.at).as_secs_f64().max(1e-6);
        Pace { seconds, requests, latency: nanos / requests.max(1.0) }
    }
}

impl Pace {
    fn rate(&self) -> f64 {
        self.requests / self.seconds
    }

    fn is_busy(&self) -> bool {
        self.rate() >= BUSY
    }

    /// What both were together.
    fn and(&self, other: &Pace) -> Pace {
        let requests = self.requests + other.requests;
        let nanos = self.latency * self.requests + other.latency * other.requests;
        Pace { seconds: self.seconds + other.seconds, requests, latency: nanos / requests.max(1.0) }
    }
}

/// By which part `less` is less than `more`; the other way round as much below zero, so that chance cancels out.
fn missing(less: f64, more: f64) -> f64 {
    let larger = less.max(more);
    if larger > 0.0 { (more - less) / larger } else { 0.0 }
}

impl Courtesy {
    /// `allowed` is the part that uploads may cost, up to 1 for "never rest"; `most` how many chunks of one upload are
    /// under way.
    pub(super) fn new(allowed: f64, most: usize, at: Instant) -> Courtesy {
        let mark = Mark { at, served: Served::default() };
        let inner = Inner {
            under_way: 0,
            begun: 0,
            rest: None,
            looking: false,
            since: mark,
            looked: mark,
            busy: false,
            turn: None,
            rested: None,
            fewer: COST_AT_FIRST,
            later: COST_AT_FIRST,
            heard: None,
        };
        Courtesy { allowed, most, inner: Mutex::new(inner) }
    }

    /// Somebody will ask soon: from now on it is looked what clients do.
    pub(super) fn arrive(&self, at: Instant, served: Served) {
        self.inner.lock().hear(&Mark { at, served });
    }

    /// Whether a chunk may begin; who is told so says when it has ended.
    pub(super) fn ask(&self, at: Instant, served: Served) -> Turn {
        let now = Mark { at, served };
        let mut inner = self.inner.lock();
        if self.allowed < 1.0 {
            inner.hear(&now);
            if let Some(left) = inner.resting(&now) {
                return if inner.looking { Turn::Look(left) } else { Turn::Wait(left) };
            }
            inner.look(&now);
            if inner.busy && !self.may_begin(&mut inner, &now) {
                let left = inner.rest.map_or(ASK_SOON, |until| until.saturating_duration_since(at));
                return Turn::Wait(left.min(ASK_AGAIN));
            }
        }
        inner.under_way += 1;
        inner.begun += 1;
        Turn::Begin
    }

    /// A chunk has ended.
    pub(super) fn ended(&self, at: Instant, served: Served) {
        let mut inner = self.inner.lock();
        inner.heard = Some(at);
        inner.under_way = inner.under_way.saturating_sub(1);
        if self.allowed < 1.0 {
            self.end_turn(&mut inner, &Mark { at, served });
        }
    }

    /// Whether a chunk may begin in this turn. Ends the turn when it is over.
    fn may_begin(&self, inner: &mut Inner, now: &Mark) -> bool {
        self.end_turn(inner, now);
        let room = self.most as f64 * self.share(inner) + 0.5;
        let limit = (1..=self.most).rfind(|count| *count as f64 <= room).unwrap_or(1);
        let late = inner.begun > 0 && now.at.saturating_duration_since(inner.since.at) >= TURN;
        inner.rest.is_none() && !late && inner.under_way < limit
    }

    /// The part of the time in which uploads work.
    fn share(&self, inner: &Inner) -> f64 {
        let cost = inner.fewer.max(inner.later).clamp(self.allowed, 1.0);
        (self.allowed / cost).min(SHARE_MAX)
    }

    /// Rests when a turn has had its time and its chunks.
    fn end_turn(&self, inner: &mut Inner, now: &Mark) {
        let worked = now.at.saturating_duration_since(inner.since.at);
        if !inner.busy || inner.rest.is_some() || inner.under_way > 0 || worked < TURN {
            return;
        }
        if inner.begun > 0 {
            inner.turn = Some(inner.since.pace(now));
        }
        let rest = worked.mul_f64(1.0 / self.share(inner) - 1.0).clamp(REST_MIN, REST_MAX);
        inner.rest = Some(now.at + rest);
        inner.since = *now;
        inner.begun = 0;
    }
}

impl Inner {
    /// When there was no upload for a time nothing of then is good for now, but what they cost. It begins with a rest,
    /// which is over at once when clients do nothing with it.
    fn hear(&mut self, now: &Mark) {
        let silent = |heard: Instant| now.at.saturating_duration_since(heard) >= FORGOTTEN;
        if self.under_way == 0 && self.heard.is_none_or(silent) {
            self.rest = Some(now.at + REST_MIN);
            self.looking = true;
            (self.turn, self.rested) = (None, None);
            (self.since, self.looked) = (*now, *now);
            self.begun = 0;
        }
        self.heard = Some(now.at);
    }

    /// How long uploads still rest. Ends the rest when it is over, or when clients do nothing with it.
    fn resting(&mut self, now: &Mark) -> Option<Duration> {
        let until = self.rest?;
        let rest = self.since.pace(now);
        let left = until.saturating_duration_since(now.at);
        let idle = rest.seconds >= REST_MIN.as_secs_f64() && !rest.is_busy();
        if !left.is_zero() && !idle {
            return Some(left.min(ASK_AGAIN));
        }
        self.compare(&rest);
        self.busy = rest.is_busy();
        (self.rest, self.looking) = (None, false);
        (self.since, self.looked) = (*now, *now);
        None
    }

    /// What the last turn cost, seen from the rests before and after it.
    fn compare(&mut self, rest: &Pace) {
        let around = self.rested.take().map_or(*rest, |before| before.and(rest));
        self.rested = rest.is_busy().then_some(*rest);
        let Some(turn) = self.turn.take().filter(|_| around.is_busy()) else { return };
        let expected = around.rate() * turn.seconds;
        let weight = WEIGHT * (expected / REQUESTS_IN_FULL).min(1.0);
        self.fewer += weight * (missing(turn.rate(), around.rate()) - self.fewer);
        // Of requests that did not come nothing is known.
        if turn.requests > 0.0 {
            self.later += weight * (missing(around.latency, turn.latency) - self.later);
        }
    }

    /// Looks whether clients have become busy, while uploads do not rest.
    fn look(&mut self, now: &Mark) {
        let seen = self.looked.pace(now);
        if seen.seconds < LOOK_EVERY.as_secs_f64() {
            return;
        }
        self.looked = *now;
        if !self.busy && seen.is_busy() {
            self.busy = true;
            self.rested = None;
            self.since = *now;
            self.begun = self.under_way;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: f64 = 0.05;
    const CHUNK: Duration = Duration::from_millis(25);

    /// Clients that get done so much, and less by `cost` while a chunk is under way, and one upload that always has a
    /// chunk more to send.
    struct World {
        now: Instant,
        served: f64,
        rate: f64,
        cost: f64,
        courtesy: Courtesy,
        ends: Vec<Instant>,
        chunks: u64,
        /// Milliseconds in which no chunk was under way.
        rested: u64,
    }

    impl World {
        fn new(allowed: f64, rate: f64, cost: f64) -> World {
            let now = Instant::now();
            let courtesy = Courtesy::new(allowed, 6, now);
            World { now, served: 0.0, rate, cost, courtesy, ends: Vec::new(), chunks: 0, rested: 0 }
        }

        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some thousands of requests"
        )]
        fn served(&self) -> Served {
            let requests = self.served as u64;
            Served { requests, nanos: requests * 100_000 }
        }

        /// Lets time pass; says how much of what they might have done clients did.
        fn run(&mut self, seconds: u64, seed: u64) -> f64 {
            let (before, began) = (self.served, self.now);
            let step = Duration::from_millis(1);
            let mut state = seed | 1;
            while self.now.duration_since(began) < Duration::from_secs(seconds) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Clients never are quite even.
                let luck = 0.5 + (state >> 11) as f64 / (1u64 << 53) as f64;
                let kept = if self.ends.is_empty() { 1.0 } else { 1.0 - self.cost };
                self.served += self.rate * kept * luck * step.as_secs_f64();
                self.now += step;
                let (now, served) = (self.now, self.served());
                let done = self.ends.iter().filter(|end| **end <= now).count();
                self.ends.retain(|end| *end > now);
                (0..done).for_each(|_| self.courtesy.ended(now, served));
                while self.ends.len() < 6 && self.courtesy.ask(now, served) == Turn::Begin {
                    self.ends.push(now + CHUNK);
                    self.chunks += 1;
                }
                self.rested += u64::from(self.ends.is_empty());
            }
            (self.served - before) / (self.rate * seconds as f64)
        }
    }

    #[test]
    fn nobody_rests_for_clients_that_are_idle() {
        for rate in [0.0, 10.0] {
            let mut world = World::new(ALLOWED, rate, 0.9);
            world.run(10, 1);
            assert!(world.rested < 100, "{}", world.rested);
            // Six at a time, all the time.
            assert!(world.chunks >= 6 * 10_000 / 26 - 6, "{}", world.chunks);
        }
    }

    #[test]
    fn clients_lose_about_as_much_as_is_allowed_and_copies_go_on() {
        for cost in [0.2, 0.5, 0.8, 1.0] {
            let mut world = World::new(ALLOWED, 100_000.0, cost);
            world.run(5, 1);
            world.chunks = 0;
            let kept = world.run(60, 2);
            assert!(kept > 1.0 - 1.6 * ALLOWED, "{cost}: {kept}");
            let share = world.chunks as f64 * CHUNK.as_secs_f64() / 60.0;
            assert!(share > 0.8 * ALLOWED, "{cost}: {share}");
        }
    }

    #[test]
    fn uploads_that_cost_little_hardly_rest() {
        let mut world = World::new(ALLOWED, 5_000.0, 0.0);
        world.run(20, 1);
        world.chunks = 0;
        world.run(20, 2);
        let share = world.chunks as f64 * CHUNK.as_secs_f64() / 20.0;
        assert!(share > 1.0, "{share}");
    }

    #[test]
    fn a_rest_ends_when_clients_have_gone_and_another_comes_with_them() {
        let mut world = World::new(ALLOWED, 100_000.0, 0.9);
        world.run(10, 1);
        assert!(world.rested > 8_000, "{}", world.rested);
        world.rate = 0.0;
        world.run(1, 2);
        world.rested = 0;
        world.run(10, 3);
        assert_eq!(world.rested, 0);
        world.rate = 100_000.0;
        world.run(10, 4);
        assert!(world.rested > 8_000, "{}", world.rested);
    }

    #[test]
    fn who_allows_everything_never_rests() {
        let mut world = World::new(1.0, 100_000.0, 1.0);
        world.run(10, 1);
        assert_eq!(world.rested, 0);
    }

    #[test]
    fn an_upload_that_begins_under_load_looks_first() {
        let mut world = World::new(ALLOWED, 100_000.0, 0.9);
        world.courtesy.arrive(world.now + FORGOTTEN, world.served());
        world.now += FORGOTTEN;
        world.run(1, 1);
        // Never six at a time.
        assert!(world.chunks <= 10, "{}", world.chunks);
    }
}
