//! Nodes that are slow, fall silent, lose operations or hold what is not ours: nobody waits for them for ever, and they are not
//! dialled more often than helps.

use super::*;
use crate::limits::{
    BRIDGE_CLOSE_DEADLINE, BRIDGE_PROGRESS_DEADLINE, BRIDGE_SAME_GAP, BRIDGE_UNVERIFIED_OPERATIONS,
    DOCUMENT_MAX_AUTHORS, SESSION_MAX_AUTHORS,
};

/// What a slow line carries.
const BYTES_PER_SECOND: u64 = 100_000;
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    /// Own operations with payloads of this size.
    async fn publish_many(&self, count: usize, bytes: usize) {
        for _ in 0..count {
            self.store.publish(self.log(), vec![7; bytes].into()).await.unwrap();
        }
    }

    fn dials(&self) -> usize {
        self.dialler.dials.load(Ordering::Relaxed)
    }

    /// Lets a Node run for a while, that plays a session again and again.
    async fn with_node(&mut self, time: Duration, mut session: impl AsyncFnMut(AtNode)) {
        let node = async {
            loop {
                let node = self.accept().await;
                session(node).await;
            }
        };
        let _: Result<(), _> = timeout(time, node).await;
    }
}

impl AtNode {
    /// All that comes, until the session ends.
    async fn until_closed(&mut self) -> Vec<Message> {
        let mut came = Vec::new();
        while let Some(message) = self.hear().await {
            if message == Message::Close {
                break;
            }
            came.push(message);
        }
        came
    }

    /// All that comes over a slow line; what is on its way when the connection is gone is lost.
    async fn until_closed_slowly(&mut self) -> Vec<SeqNum> {
        let mut came = Vec::new();
        while let Some(piece) = self.recv.0.recv().await {
            sleep(Duration::from_secs(piece.len() as u64) / BYTES_PER_SECOND as u32).await;
            if self._streams.2.is_closed() {
                break;
            }
            self.frames.push(&piece);
            while let Some(Cut::Frame(frame)) = self.frames.cut() {
                match Message::read(&frame, self.log).unwrap() {
                    Message::Operation(raw) | Message::Live(raw) => came.push(seq_num(self.log, raw)),
                    Message::Close => return came,
                    Message::Have(_) | Message::PreSync { .. } | Message::Done => {}
                }
            }
        }
        came
    }
}

fn newest(count: usize) -> Heights {
    count.checked_sub(1).map(|newest| (identity(1).peer_id(), newest as SeqNum)).into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_before_it_is_done_is_dialled_again() {
    let mut world = World::new(1).await;
    world.publish_many(BRIDGE_UNVERIFIED_OPERATIONS + 88, 10).await;
    world.open();
    for reads in [true, false] {
        let mut node = world.accept().await;
        let began = Instant::now();
        node.say(Message::Have(Heights::new())).await;
        node.say(Message::PreSync { operations: 1, bytes: 1 }).await;
        if reads {
            assert_eq!(node.until_closed().await.len(), 3 + BRIDGE_UNVERIFIED_OPERATIONS, "heights, what comes, done");
        }
        let _next = world.accept().await;
        let waited = began.elapsed();
        assert!(waited >= BRIDGE_PROGRESS_DEADLINE, "{waited:?}");
        assert!(waited < BRIDGE_PROGRESS_DEADLINE + Duration::from_secs(5), "{waited:?}");
        assert!(matches!(world.bridge.status()[0].problem, Some(BridgeError::Silent)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_read_any_more_is_dialled_again_and_one_that_has_nothing_to_say_is_not() {
    let mut world = World::new(1).await;
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    sleep(HOUR).await;
    assert_eq!(world.dials(), 1);
    let began = Instant::now();
    world.publish_many(2, 1_000_000).await;
    world.accept().await;
    let waited = began.elapsed();
    assert!(waited < BRIDGE_PROGRESS_DEADLINE + Duration::from_secs(5), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_close_is_dialled_again_and_gets_what_was_in_flight() {
    let mut world = World::new(1).await;
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    world.publish("in flight").await;
    while node.hear().await.unwrap() != Message::Close {}
    let began = Instant::now();
    let mut next = world.accept().await;
    assert!(began.elapsed() >= BRIDGE_CLOSE_DEADLINE && began.elapsed() < 2 * BRIDGE_CLOSE_DEADLINE);
    assert_eq!(next.catch_up(Heights::new(), &[]).await.1, [0]);
}

#[tokio::test(start_paused = true)]
async fn over_a_slow_line_nothing_is_sent_twice() {
    let mut world = World::new(1).await;
    let (count, bytes) = (12, 256 * 1024);
    world.publish_many(count, bytes).await;
    world.open();
    let mut came = Vec::new();
    while came.len() < count {
        let mut node = world.accept().await;
        node.say(Message::Have(newest(came.len()))).await;
        node.say(Message::Done).await;
        came.extend(node.until_closed_slowly().await);
        assert!(world.dials() <= 5, "only {} came in {} sessions", came.len(), world.dials());
    }
    assert!(came.into_iter().eq(0..count as SeqNum));
}

#[tokio::test(start_paused = true)]
async fn who_edits_now_and_then_opens_few_sessions() {
    let mut world = World::new(1).await;
    world.open();
    let store = Arc::clone(&world.store);
    let log = world.log();
    let editing = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(15)).await;
            store.publish(log, Bytes::from_static(b"an edit")).await.unwrap();
        }
    });
    let mut taken = 0;
    world
        .with_node(HOUR, async |mut node| {
            node.say(Message::Have(newest(taken))).await;
            node.say(Message::Done).await;
            while let Some(message) = node.hear().await {
                match message {
                    Message::Operation(_) | Message::Live(_) => taken += 1,
                    Message::Close => return,
                    Message::Have(_) | Message::PreSync { .. } | Message::Done => {}
                }
            }
        })
        .await;
    editing.abort();
    assert!((238..=240).contains(&taken), "{taken} operations");
    let dials = world.dials();
    assert!((10..=20).contains(&dials), "{dials} sessions in an hour");
    let delivered = world.document().acknowledged.load(Ordering::Relaxed);
    assert!(delivered >= 240 - 40, "{delivered} delivered");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_passes_on_what_it_lacks_the_beginning_of_is_asked_later_and_later() {
    let mut world = World::new(1).await;
    let bob = identity(2);
    let bobs = chain(&bob, world.log(), None, &["one", "two", "three", "lost there", "five", "six"]);
    world.store.ingest(world.log(), bobs[..3].to_vec()).await.unwrap();
    world.open();
    let behind = async |mut node: AtNode| {
        node.catch_up([(bob.peer_id(), 2)].into(), &[]).await;
        for operation in &bobs[4..] {
            node.say(Message::Live(operation.into())).await;
        }
        node.until_closed().await;
    };
    world.with_node(Duration::from_secs(600), behind).await;
    let dials = world.dials();
    assert!((8..=12).contains(&dials), "{dials} sessions in ten minutes");
    // The Node got it in the end.
    let mut node = world.accept().await;
    node.catch_up([(bob.peer_id(), 5)].into(), &bobs[3..]).await;
    world.until(|world| world.height(&bob) == Some(5)).await;
    sleep(HOUR).await;
    assert_eq!(world.dials(), dials + 1);
}

#[tokio::test(start_paused = true)]
async fn an_author_who_goes_on_writing_something_else_does_not_end_the_session() {
    let mut world = World::new(1).await;
    let (bob, carol) = (identity(2), identity(3));
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    for _ in 0..BRIDGE_REFUSED_PER_SESSION + 44 {
        node.say(Message::Live(foreign(&bob, node.log))).await;
    }
    let carols = chain(&carol, node.log, None, &["one"]);
    node.say(Message::Live((&carols[0]).into())).await;
    world.until(|world| world.height(&carol).is_some()).await;
    assert_eq!(world.bridge.status()[0].refused, u64::from(BRIDGE_REFUSED_PER_SESSION) + 44);
    assert_eq!(world.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_author_who_was_left_out_and_is_one_too_many_does_not_end_the_session() {
    let mut world = World::new(1).await;
    let author = |number: u32| Identity::from_seed(blake3::hash(&number.to_be_bytes()).as_bytes());
    let (carol, bob) = (author(0), author(u32::MAX));
    let carols = chain(&carol, world.log(), None, &["one", "two"]);
    let others =
        (1..DOCUMENT_MAX_AUTHORS as u32).map(|number| chain(&author(number), world.log(), None, &["one"]).remove(0));
    let known: Vec<_> = [carols[0].clone()].into_iter().chain(others).collect();
    let heights = known.iter().map(|operation| (operation.author(), 0)).collect();
    assert!(world.store.ingest(world.log(), known).await.unwrap().refused.is_empty());
    world.open();
    let mut node = world.accept().await;
    node.catch_up(heights, &[]).await;
    node.say(Message::Live(foreign(&bob, node.log))).await;
    node.say(Message::Live((&chain(&bob, node.log, None, &["one"])[0]).into())).await;
    node.say(Message::Live((&carols[1]).into())).await;
    world.until(|world| world.height(&carol) == Some(1)).await;
    assert_eq!((world.bridge.status()[0].refused, world.dials()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_author_of_another_log_is_left_out_and_the_others_arrive() {
    let mut world = World::new(1).await;
    let (bob, carol) = (identity(2), identity(3));
    let (foreign, carols) =
        (chain(&bob, LogId::from([9; 32]), None, &["x"; 300]), chain(&carol, world.log(), None, &["one"]));
    world.open();
    let theirs = Heights::from([(bob.peer_id(), 299), (carol.peer_id(), 0)]);
    let operations: Vec<_> = foreign.into_iter().chain(carols).collect();
    world.accept().await.catch_up(theirs, &operations).await;
    world.until(|world| world.height(&carol).is_some()).await;
    assert_eq!(world.accept().await.catch_up(Heights::new(), &[]).await.0.get(&bob.peer_id()), Some(&SeqNum::MAX));
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_its_node_has_and_never_sends_is_not_asked_for_over_and_over() {
    let mut world = World::new(1).await;
    let bob = identity(2).peer_id();
    world.open();
    for session in 1..=BRIDGE_SAME_GAP {
        let mut node = world.accept().await;
        assert_eq!(node.catch_up([(bob, 0)].into(), &[]).await.0, Heights::new());
        if session < BRIDGE_SAME_GAP {
            assert!(node.until_closed().await.is_empty());
        } else {
            sleep(HOUR).await;
        }
    }
    assert_eq!(world.dials(), BRIDGE_SAME_GAP as usize);
    let mut node = world.accept().await;
    assert_eq!(node.catch_up([(bob, 0)].into(), &[]).await.0, [(bob, SeqNum::MAX)].into());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_a_node_deleted_and_that_is_here_leaves_nobody_out() {
    let mut world = World::new(1).await;
    let own = world.publish("deleted there").await;
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    let bytes = postcard::to_allocvec(&(serde_bytes::Bytes::new(own.header()), None::<&[u8]>)).unwrap();
    node.say(Message::Live(postcard::from_bytes(&bytes).unwrap())).await;
    world.until(|world| world.bridge.status()[0].refused == 1).await;
    world.publish("lost on its way").await;
    assert!(matches!(node.hear().await, Some(Message::Live(_))));
    drop(node);
    let (told, came) = world.accept().await.catch_up(newest(1), &[]).await;
    assert_eq!((told, came), (newest(1), vec![1]));
}

#[tokio::test(start_paused = true)]
async fn what_came_before_the_operation_that_ends_a_session_is_stored() {
    let mut world = World::new(1).await;
    let (bob, carol) = (identity(2), identity(3));
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    let mut at_once = Vec::new();
    let mut put = |raw| Message::Live(raw).put(node.log, &mut at_once);
    put(foreign(&carol, node.log));
    for operation in chain(&bob, node.log, None, &["one", "two"]) {
        put((&operation).into());
    }
    (0..=BRIDGE_MALFORMED_PER_SESSION).for_each(|_| put(raw(b"nonsense", b"")));
    node.send.write(at_once.into()).await.unwrap();
    let _next = world.accept().await;
    assert_eq!(world.height(&bob), Some(1));
}

#[tokio::test(start_paused = true)]
async fn own_operations_are_delivered_once_the_node_has_shown_that_they_are_ours() {
    let mut world = World::new(1).await;
    let own = identity(1);
    world.publish("here").await;
    let others = chain(&own, world.log(), None, &["there"]);
    world.open();
    world.accept().await.catch_up(newest(1), &others).await;
    world.until(|world| !world.document().frozen().is_empty()).await;
    drop(world.accept().await);
    assert_eq!(world.document().acknowledged.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fork_that_only_the_store_knows_of_reaches_the_document() {
    let mut world = World::new(1).await;
    let bob = identity(2);
    let chains = ["one", "other"].map(|payload| chain(&bob, world.log(), None, &[payload]));
    for operations in &chains {
        world.store.ingest(world.log(), operations.clone()).await.unwrap();
    }
    world.open();
    let mut node = world.accept().await;
    node.catch_up([(bob.peer_id(), 0)].into(), &chains[1]).await;
    world.until(|world| world.document().frozen() == [bob.peer_id()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_with_too_many_authors_is_named_as_that() {
    let mut world = World::new(1).await;
    world.open();
    let mut node = world.accept().await;
    let author = |number: usize| {
        let mut seed = [3; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        (Identity::from_seed(&seed).peer_id(), 0)
    };
    node.say(Message::Have((0..=SESSION_MAX_AUTHORS).map(author).collect())).await;
    world.until(|world| world.bridge.status()[0].problem.is_some()).await;
    let problem = world.bridge.status()[0].problem.clone();
    assert!(matches!(problem, Some(BridgeError::TooManyAuthors(SESSION_MAX_AUTHORS))), "{problem:?}");
}

#[tokio::test(start_paused = true)]
async fn what_came_behind_a_gap_is_asked_for_again() {
    let mut world = World::new(1).await;
    let bob = identity(2);
    let bobs = chain(&bob, world.log(), None, &["one", "lost on its way", "three"]);
    world.open();
    let mut node = world.accept().await;
    node.catch_up([(bob.peer_id(), 0)].into(), &bobs[..1]).await;
    node.say(Message::Live((&bobs[2]).into())).await;
    assert_eq!(node.hear().await, Some(Message::Close));
    drop(node);
    let mut node = world.accept().await;
    let (told, _) = node.catch_up([(bob.peer_id(), 2)].into(), &bobs[1..]).await;
    assert_eq!(told, [(bob.peer_id(), 0)].into());
    world.until(|world| world.height(&bob) == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_with_an_operation_that_is_not_to_be_had_does_not_keep_the_others_away() {
    let mut world = World::new(1).await;
    let (bob, carol) = (identity(2), identity(3));
    let count = BRIDGE_REFUSED_PER_SESSION as usize + 10;
    let bobs = chain(&bob, world.log(), None, &vec!["more"; count]);
    let carols = chain(&carol, world.log(), None, &["one"]);
    world.open();
    let theirs: Heights = [(bob.peer_id(), count as SeqNum - 1), (carol.peer_id(), 0)].into();
    for _ in 0..10 {
        let mut node = world.accept().await;
        node.say(Message::Have(theirs.clone())).await;
        let Some(Message::Have(told)) = node.hear().await else { panic!("heights come first") };
        // The first of Bob's is larger than may be, say.
        let bobs = if told.contains_key(&bob.peer_id()) { &[][..] } else { &bobs[1..] };
        node.say(Message::PreSync { operations: 1, bytes: 1 }).await;
        for operation in bobs.iter().chain(&carols) {
            node.say(Message::Operation(operation.into())).await;
        }
        node.say(Message::Done).await;
        let _ = timeout(Duration::from_secs(5), async { while node.hear().await.is_some() {} }).await;
        if world.height(&carol).is_some() {
            return;
        }
    }
    panic!("Carol's operations never arrive");
}
