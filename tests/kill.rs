//! `kill -9`, again and again, on a real process that publishes and receives: nothing acknowledged is lost, no sequence
//! number is used twice, and both sides hold the same in the end.
//!
//! The child is this test binary, run again (`kill/child.rs`); its peer lives here. Where it is killed comes from a seed
//! (`PANDA_SEED`, printed when something fails), but processes are real, so a seed does not repeat a life exactly. What must
//! hold is in `kill/ledger.rs`. Deadlines only end a test that hangs.

#[path = "kill/child.rs"]
mod child;
#[path = "kill/ledger.rs"]
mod ledger;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use child::{Line, Orders};
use ledger::{Heads, Ledger, Seen};
use panda_network::{Document, DocumentEvent, PandaNetwork, PeerId, StartFrom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, mpsc};

/// How often the child is killed.
const LIVES: u32 = 120;
/// Operations that the peer publishes in each life of the child, at most; it stops when the child is killed.
const PEER_OPERATIONS: u32 = 300;
/// A life that does not get to where it is to be killed within this time hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// A life that takes longer than this is told of, for whoever looks for the reason.
const REMARKABLE: Duration = Duration::from_secs(3);
/// Every so many lives both sides settle before the kill.
const SETTLE_EVERY: u32 = 10;

/// Not a test by itself: the child of the others, which run this binary again with orders. Without orders nothing is to be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process() {
    if let Some(orders) = Orders::of_this_process() {
        child::live(orders).await;
    }
}

/// A running child. It is killed when this is dropped.
struct Child {
    process: std::process::Child,
    lines: mpsc::UnboundedReceiver<Line>,
}

impl Child {
    fn spawn(orders: &Orders) -> Self {
        let (name, value) = orders.to_variable();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture", "--test-threads=1"])
            .env(name, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            // A kill may cut the last line off: it was not said.
            let whole = stdout.split(b'\n').map_while(Result::ok);
            for line in whole.filter_map(|line| Line::parse(&String::from_utf8(line).unwrap())) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, lines }
    }

    fn kill(&mut self) {
        // Fails when it has ended already, which its lines have told.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where in its life the child is killed.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// After so many steps of starting, and a moment.
    Starting { steps: usize, moment: Duration },
    /// After so many receipts.
    Publishing { receipts: usize },
    /// After so many operations of the peer, while it publishes itself.
    Ingesting { operations: usize },
    /// When both sides have everything.
    Settled,
}

impl Fate {
    fn draw(life: u32, random: &mut ChaCha8Rng) -> Self {
        match random.random_range(0..4) {
            _ if (life + 1).is_multiple_of(SETTLE_EVERY) => Self::Settled,
            0 => {
                let moment = Duration::from_micros(random.random_range(0..30_000));
                Self::Starting { steps: random.random_range(0..=3), moment }
            }
            1 => Self::Ingesting { operations: random.random_range(1..150) },
            _ => Self::Publishing { receipts: random.random_range(1..150) },
        }
    }

    /// How many operations the child has under way at once, and how many each of them publishes.
    fn work(self, random: &mut ChaCha8Rng) -> (u32, u32) {
        match self {
            Self::Settled => (4, 25),
            Self::Starting { .. } | Self::Publishing { .. } => ([1, 4, 32][random.random_range(0..3)], 10_000),
            Self::Ingesting { .. } => (random.random_range(0..3), 100),
        }
    }
}

/// What a life has come to.
#[derive(Debug, Default)]
struct Progress {
    steps: usize,
    receipts: usize,
    operations: usize,
    published: bool,
    known: bool,
    ended: Option<Heads>,
}

/// The test's state: the peer of the child, and what both have said.
struct Story {
    seed: u64,
    peer: Document,
    ledger: Arc<Mutex<Ledger>>,
    shown: Arc<Notify>,
    child: Option<PeerId>,
    opened: bool,
    directory: tempfile::TempDir,
    kills: u32,
}

impl Story {
    async fn begin(seed: u64, network: &PandaNetwork) -> Self {
        let peer = network.create().await.unwrap();
        let (ledger, shown) = <(Arc<Mutex<Ledger>>, Arc<Notify>)>::default();
        tokio::spawn(follow(peer.clone(), Arc::clone(&ledger), Arc::clone(&shown)));
        let directory = tempfile::tempdir().unwrap();
        Self { seed, peer, ledger, shown, child: None, opened: false, directory, kills: 0 }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    async fn spawn(&self, life: u32, (window, each): (u32, u32)) -> Child {
        // An editor whose first `open` did not return opens again by ticket; later both ways are right.
        let by_ticket = !self.opened || life.is_multiple_of(2);
        let ticket = if by_ticket { self.peer.ticket().await.unwrap().to_string() } else { "-".into() };
        let directory = self.directory.path().join("node").to_str().unwrap().into();
        let known = self.ledger().at_child.digest.count();
        Child::spawn(&Orders { directory, life, window, each, known, ticket })
    }

    /// One life of the child, up to where it is killed and its last words are heard.
    async fn life(&mut self, life: u32, fate: Fate, work: (u32, u32)) {
        let mut child = self.spawn(life, work).await;
        let (killed, peer, ledger) = (AtomicBool::new(false), self.peer.clone(), Arc::clone(&self.ledger));
        let mut progress = Progress::default();
        let publishing = async {
            for number in 0..PEER_OPERATIONS {
                if killed.load(Ordering::Relaxed) {
                    break;
                }
                let receipt = peer.publish(format!("peer-{life}-{number}")).await.unwrap();
                ledger.lock().unwrap().on_receipt(Seen::of(receipt.operation()));
            }
            killed.load(Ordering::Relaxed)
        };
        let living = async {
            self.follow_until(&mut child, &mut progress, fate).await;
            killed.store(true, Ordering::Relaxed);
            child.kill();
            self.kills += 1;
            while let Some(line) = child.lines.recv().await {
                self.on_line(line, &mut progress);
            }
        };
        if let Fate::Settled = fate {
            // What is published while we look would never be settled.
            publishing.await;
            living.await;
        } else {
            tokio::join!(publishing, living);
        }
        self.check(&format!("after life {life}, which ended {fate:?}"));
    }

    /// The last life: settles and ends in good order, with these heads.
    async fn last_life(&mut self) -> Heads {
        let mut child = self.spawn(LIVES, (0, 0)).await;
        let mut progress = Progress::default();
        self.follow_until(&mut child, &mut progress, Fate::Settled).await;
        drop(child.process.stdin.take());
        while let Some(line) = child.lines.recv().await {
            self.on_line(line, &mut progress);
        }
        self.check("at the end");
        progress.ended.expect("the child shuts down when it is told to")
    }

    async fn follow_until(&mut self, child: &mut Child, progress: &mut Progress, fate: Fate) {
        let hangs = tokio::time::sleep(HANGS_AFTER);
        tokio::pin!(hangs);
        while !self.is_reached(fate, progress) {
            tokio::select! {
                line = child.lines.recv() => match line {
                    Some(line) => self.on_line(line, progress),
                    None => panic!("seed {}: the child ended by itself: {progress:?}", self.seed),
                },
                () = self.shown.notified() => {}
                () = &mut hangs => panic!("seed {}: {fate:?} is not reached: {progress:?}, {:?}", self.seed, self.stand()),
            }
            self.check("in the middle of a life");
        }
        if let Fate::Starting { moment, .. } = fate {
            // Waits for nothing: the moment of the kill is the random part.
            tokio::time::sleep(moment).await;
        }
    }

    fn is_reached(&self, fate: Fate, progress: &Progress) -> bool {
        match fate {
            Fate::Starting { steps, .. } => progress.steps >= steps,
            Fate::Publishing { receipts } => progress.receipts >= receipts,
            Fate::Ingesting { operations } => progress.operations >= operations,
            Fate::Settled => progress.published && progress.known && self.ledger().is_settled(),
        }
    }

    fn on_line(&mut self, line: Line, progress: &mut Progress) {
        let mut ledger = self.ledger.lock().unwrap();
        match line {
            Line::Starting => progress.steps = 1,
            Line::Started(id) => {
                progress.steps = 2;
                if *self.child.get_or_insert(id) != id {
                    ledger.problems.push("the child came back as somebody else".into());
                }
            }
            Line::Opened(heads) => {
                (progress.steps, self.opened) = (3, true);
                ledger.on_started(self.child.unwrap(), &heads);
            }
            Line::Known(digest) => {
                progress.known = true;
                ledger.on_known(&digest);
            }
            Line::Operation(seen) => {
                progress.operations += usize::from(Some(seen.author) != self.child);
                ledger.on_operation(|ledger| &mut ledger.at_child, seen);
            }
            Line::Receipt(seen) => {
                progress.receipts += 1;
                ledger.on_receipt(seen);
            }
            Line::Published => progress.published = true,
            Line::Fork(author) => ledger.problems.push(format!("the child reports a fork of {author}")),
            Line::Failed(error) => ledger.problems.push(format!("the child says: {error}")),
            Line::Ended(heads) => progress.ended = Some(heads),
        }
    }

    fn check(&self, when: &str) {
        let problems = std::mem::take(&mut self.ledger().problems);
        assert!(problems.is_empty(), "seed {}, {when}:\n{}", self.seed, problems.join("\n"));
    }

    fn stand(&self) -> (Heads, Heads) {
        let ledger = self.ledger();
        (ledger.at_child.heads.clone(), ledger.at_peer.heads.clone())
    }
}

/// Tells the ledger what the peer's editor sees.
async fn follow(document: Document, ledger: Arc<Mutex<Ledger>>, shown: Arc<Notify>) {
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    while let Some(event) = events.next().await {
        let mut ledger = ledger.lock().unwrap();
        match event {
            Ok(DocumentEvent::Operation(stored)) => {
                ledger.on_operation(|ledger| &mut ledger.at_peer, Seen::of(&stored));
            }
            Ok(DocumentEvent::Fork(author)) => ledger.problems.push(format!("the peer reports a fork of {author}")),
            Ok(_) => {}
            Err(error) => ledger.problems.push(format!("the peer says: {error}")),
        }
        shown.notify_one();
    }
}

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_again_and_again_loses_nothing_and_uses_no_number_twice() {
    let (seed, began) = (seed(), Instant::now());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let at_peer = tempfile::tempdir().unwrap();
    let network = PandaNetwork::start(child::options(at_peer.path().to_str().unwrap())).await.unwrap();
    let mut story = Story::begin(seed, &network).await;
    for life in 0..LIVES {
        let fate = Fate::draw(life, &mut random);
        let work = fate.work(&mut random);
        let born = Instant::now();
        story.life(life, fate, work).await;
        if born.elapsed() > REMARKABLE {
            println!("seed {seed}: life {life}, {fate:?} with {work:?}, took {:.1?}", born.elapsed());
        }
    }
    let heads = story.last_life().await;
    assert_eq!(heads, Heads::of(&story.peer), "both have the same heads");
    network.shutdown(Duration::from_secs(5)).await.unwrap();
    // The peer was not killed; a restart reads the same from its disk all the same.
    let network = PandaNetwork::start(child::options(at_peer.path().to_str().unwrap())).await.unwrap();
    let document = network.reopen(story.peer.id()).await.unwrap();
    assert_eq!(Heads::of(&document), heads);
    assert!(document.status().borrow().frozen.is_empty());
    let mut digest = ledger::Digest::default();
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    while digest.count() < story.ledger().operations() {
        if let DocumentEvent::Operation(stored) = events.next().await.unwrap().unwrap() {
            digest.add(&Seen::of(&stored));
        }
    }
    assert_eq!(digest.to_string(), story.ledger().at_peer.digest.to_string());
    network.shutdown(Duration::from_secs(5)).await.unwrap();
    let ledger = story.ledger();
    let (kills, operations, receipts) = (story.kills, ledger.operations(), ledger.receipts);
    println!("{kills} kills, {operations} operations, {receipts} of them acknowledged, {:.1?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_is_made_starts_again_as_itself() {
    let seed = seed();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut before, mut after) = (0, 0);
    for _ in 0..30 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node").to_str().unwrap().to_owned();
        let orders = Orders { directory: path.clone(), life: 0, window: 0, each: 0, known: 0, ticket: "none".into() };
        let mut child = Child::spawn(&orders);
        assert_eq!(child.lines.recv().await, Some(Line::Starting));
        tokio::time::sleep(Duration::from_micros(random.random_range(0..40_000))).await;
        child.kill();
        let said = child.lines.recv().await;
        let network = PandaNetwork::start(child::options(&path)).await.unwrap();
        match said {
            None => before += 1,
            Some(line) => {
                after += 1;
                assert_eq!(line, Line::Started(network.node_id()), "seed {seed}");
            }
        }
        let document = network.create().await.unwrap();
        assert_eq!(document.publish("first").await.unwrap().seq_num(), 0);
        network.shutdown(Duration::from_secs(5)).await.unwrap();
    }
    println!("killed {before} times before it had started, {after} times after");
}
