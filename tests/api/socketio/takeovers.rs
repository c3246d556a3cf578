//! The records of sessions whose clients all come back at the same time: they are taken over
//! together, and each of them goes to its own connection.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use futures::future::{join, join_all};
use mongodb::Database;
use realtime_chat_backend::models::{
    Claimed, Owner, RoomId, Shared, SocketRecord, Store, StoreError, UserId, own,
};

use crate::helpers::TestServer;
use crate::helpers::mongod::{ReplicaSet, connect, fresh_database};
use crate::helpers::socket_io::{Caller, Memory};

/// More than one operation takes at most.
const MANY: usize = 100;

/// An instance, with a connection of its own to the database.
struct Instance {
    id: ObjectId,
    store: Store,
}

impl Instance {
    async fn on(uri: &str) -> Self {
        let store = Store::new(connect(uri).await, &Shared::default());
        Self { id: ObjectId::new(), store }
    }

    /// Stores the records of new sessions of these users, each in a room of its own.
    async fn insert(
        &self,
        users: impl Iterator<Item = UserId>,
        expires: DateTime,
    ) -> Vec<SocketRecord> {
        let records: Vec<_> = users
            .enumerate()
            .map(|(number, user)| SocketRecord {
                pid: format!("{}-{number}", ObjectId::new().to_hex()),
                sid: format!("sid {number}"),
                user,
                owner: Owner { instance: self.id, generation: 0 },
                rooms: vec![(RoomId::new(), format!("{number}.1"))],
            })
            .collect();
        for record in &records {
            self.store.sockets.insert(record, expires).await.unwrap();
        }
        records
    }

    async fn claim(&self, pid: &str, user: UserId) -> Result<Claimed, StoreError> {
        self.store.sockets.claim(pid, user, self.id, later()).await
    }
}

fn later() -> DateTime {
    DateTime::from_system_time(SystemTime::now() + Duration::from_secs(600))
}

/// What the next owner of a record should get.
fn taken_over(record: &SocketRecord, instance: ObjectId) -> Claimed {
    let owner = Owner { instance, generation: record.owner.generation + 1 };
    Claimed::Record(SocketRecord { owner, ..record.clone() })
}

fn owner(claimed: &Claimed) -> Option<Owner> {
    match claimed {
        Claimed::Record(record) => Some(record.owner),
        Claimed::Superseded | Claimed::Nothing => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_records_each_goes_to_who_may_have_it() {
    let uri = fresh_database().await;
    let [before, after] = [Instance::on(&uri).await, Instance::on(&uri).await];
    let users = [UserId::new(), UserId::new()];
    let turns = || (0..MANY).map(|number| users[number % 2]);
    let records = before.insert(turns(), later()).await;
    let expired = before.insert(turns().take(3), DateTime::now()).await;

    let instances = records.iter().map(|record| async {
        let other = if record.user == users[0] { users[1] } else { users[0] };
        let sockets = &after.store.sockets;
        let (ours, others) = join(
            sockets.instance_of(&record.pid, record.user),
            sockets.instance_of(&record.pid, other),
        )
        .await;
        assert_eq!((ours.unwrap(), others.unwrap()), (Some(before.id), None));
        // Somebody else asks before and after the right one.
        let claims = [other, record.user, other].map(|user| after.claim(&record.pid, user));
        let [first, ours, last] = join_all(claims).await.try_into().unwrap();
        assert_eq!(ours.unwrap(), taken_over(record, after.id));
        assert_eq!((first.unwrap(), last.unwrap()), (Claimed::Nothing, Claimed::Nothing));
    });
    let nobody = expired.iter().map(|record| async {
        assert_eq!(after.store.sockets.instance_of(&record.pid, record.user).await.unwrap(), None);
        assert_eq!(after.claim(&record.pid, record.user).await.unwrap(), Claimed::Nothing);
        assert_eq!(after.claim("unknown", record.user).await.unwrap(), Claimed::Nothing);
    });
    join(join_all(instances), join_all(nobody)).await;

    let pids: Vec<_> = records.iter().map(|record| record.pid.clone()).collect();
    let taken = before.store.sockets.taken_over(&pids, before.id).await.unwrap();
    assert_eq!(taken.len(), MANY);
    assert!(taken.iter().all(|(_, generation)| *generation == 1));
    // Only the new owner writes.
    let record = &records[0];
    let (room, sockets) = (RoomId::new(), &after.store.sockets);
    assert!(!sockets.join(&record.pid, record.owner, room, "2.1").await.unwrap());
    let owner = Owner { instance: after.id, generation: 1 };
    assert!(sockets.join(&record.pid, owner, room, "2.1").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_connections_in_one_operation_the_later_has_the_record() {
    let instance = Instance::on(&fresh_database().await).await;
    let user = UserId::new();
    let records = instance.insert((0..20).map(|_| user), later()).await;
    let claims = records.iter().flat_map(|record| [record, record]);
    let claimed = join_all(claims.map(|record| instance.claim(&record.pid, user))).await;
    let mut together = 0;
    for (record, claimed) in records.iter().zip(claimed.chunks(2)) {
        let [first, second] = claimed else { unreachable!() };
        let second = second.as_ref().unwrap();
        together += usize::from(
            *first.as_ref().unwrap() == Claimed::Superseded
                && *second == taken_over(record, instance.id),
        );
    }
    // The first operations begin before all have asked, so a few may be alone.
    assert!(together >= records.len() / 2, "{claimed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instances_one_has_a_record_and_the_other_learns_of_it() {
    let uri = fresh_database().await;
    let instances = [Instance::on(&uri).await, Instance::on(&uri).await];
    // Each of them has two workers.
    let mut beside = [Instance::on(&uri).await, Instance::on(&uri).await];
    for (beside, instance) in beside.iter_mut().zip(&instances) {
        beside.id = instance.id;
    }
    let user = UserId::new();
    let records = instances[0].insert((0..MANY).map(|_| user), later()).await;
    for round in 1..=3 {
        let claiming = instances
            .iter()
            .chain(&beside)
            .map(|worker| join_all(records.iter().map(|record| worker.claim(&record.pid, user))));
        let mut claimed: Vec<_> =
            join_all(claiming).await.into_iter().map(Vec::into_iter).collect();
        for record in &records {
            let ours = claimed.iter_mut().map(|claimed| claimed.next().unwrap().unwrap());
            let owners: Vec<_> = ours.filter_map(|claimed| owner(&claimed)).collect();
            let generations: HashSet<_> = owners.iter().map(|owner| owner.generation).collect();
            assert_eq!(generations.len(), owners.len(), "no two believe that they have it");
            let newest = owners.iter().max_by_key(|owner| owner.generation).expect("one has it");
            assert_eq!(newest.generation, round * 4, "each of the workers took it over once");
            let (pid, pids) = (&record.pid, [record.pid.clone()]);
            for Instance { id, store } in &instances {
                let lost = store.sockets.taken_over(&pids, *id).await.unwrap();
                assert_eq!(lost.is_empty(), newest.instance == *id);
            }
            for owner in &owners {
                let kept = instances[0].store.sockets.keep_until(pid, *owner, later()).await;
                assert_eq!(kept.unwrap(), owner == newest, "{owners:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_ids_take_nothing_from_those_that_are_looked_up_beside_them() {
    let instance = Instance::on(&fresh_database().await).await;
    let user = UserId::new();
    let records = instance.insert((0..MANY).map(|_| user), later()).await;
    // As long as a packet can be. In one operation, some fifty of them are more than MongoDB takes.
    let long = "x".repeat(1_000_000);
    let sockets = &instance.store.sockets;
    let asking = records.iter().map(|record| async {
        let unknown = sockets.instance_of(&long, user);
        let (unknown, known) = join(unknown, sockets.instance_of(&record.pid, user)).await;
        assert_eq!((unknown.unwrap(), known.unwrap()), (None, Some(instance.id)));
        let (unknown, known) =
            join(instance.claim(&long, user), instance.claim(&record.pid, user)).await;
        assert_eq!(unknown.unwrap(), Claimed::Nothing);
        assert_eq!(known.unwrap(), taken_over(record, instance.id));
    });
    join_all(asking).await;
}

/// The records as they are stored.
fn stored(database: &Database) -> mongodb::Collection<Document> {
    database.collection(own::SOCKETS.collection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_the_failure_of_its_client_alone() {
    let uri = fresh_database().await;
    let instance = Instance::on(&uri).await;
    let user = UserId::new();
    let records = instance.insert((0..30).map(|_| user), later()).await;
    let stored = stored(instance.store.database());
    let damages = [
        doc! { "$set": { "owner": "nobody" } },
        doc! { "$unset": { "rooms": "" } },
        doc! { "$set": { "rooms": { "no id": "1.1" } } },
        doc! { "$set": { "owner.generation": "many" } },
    ];
    for (record, damage) in records.iter().zip(&damages) {
        stored.update_one(doc! { "_id": &record.pid }, damage.clone()).await.unwrap();
    }
    let claimed = join_all(records.iter().map(|record| instance.claim(&record.pid, user))).await;
    for (number, (record, claimed)) in records.iter().zip(claimed).enumerate() {
        if number < damages.len() {
            assert!(claimed.is_err(), "{number}: {claimed:?}");
        } else {
            assert_eq!(claimed.unwrap(), taken_over(record, instance.id));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_not_the_end_of_those_who_come_back() {
    let testable = ["--setParameter", "enableTestCommands=1"];
    let mongo = ReplicaSet::start_with(1, &testable).await;
    let instance = Instance::on(&format!("{}&appName=takeovers", mongo.uri("chat"))).await;
    let user = UserId::new();
    let records = instance.insert((0..30).map(|_| user), later()).await;
    let admin = instance.store.database().client().database("admin");
    for generation in 1..=4 {
        // As when the primary dies, and as when it is none any more.
        let how = match generation % 2 {
            0 => doc! { "closeConnection": true },
            _ => doc! { "errorCode": 10107 },
        };
        let mut data = doc! { "failCommands": ["update"], "appName": "takeovers" };
        data.extend(how);
        let fail =
            doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
        admin.run_command(fail).await.unwrap();
        let claiming = records.iter().map(|record| instance.claim(&record.pid, user));
        for claimed in join_all(claiming).await {
            let owner = owner(&claimed.unwrap()).expect("it has the record");
            assert_eq!(owner, Owner { instance: instance.id, generation });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_come_back_at_once_have_what_they_missed() {
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let users = [servers[0].register("ada").await, servers[0].register("bob").await];
    let room = users[0].create_room("lounge").await;
    let (addr, room) = (servers[0].addr, room.as_str());
    let joining = (0..MANY).map(|number| &users[number % 2]).map(|user| async move {
        let mut caller = Caller::connect(addr, &user.token).await;
        caller.join(room).await;
        caller
    });
    let mut joined = join_all(joining).await;
    let sids: HashMap<String, String> = joined
        .iter()
        .map(|caller| (caller.memory.pid.clone().unwrap(), caller.sid.clone()))
        .collect();
    users[0].send(room, "before").await;
    for caller in &mut joined {
        assert_eq!(caller.contents(1).await, ["before"]);
    }
    let memories: Vec<Memory> = joined.into_iter().map(Caller::cut).collect();
    users[0].send(room, "meanwhile").await;

    let coming = memories.iter().enumerate().map(|(number, memory)| {
        let (addr, memory) = (servers[number % 3 % 2].addr, memory.clone());
        let [token, other] = [number, number + 1].map(|number| users[number % 2].token.as_str());
        async move {
            let (right, wrong) = join(
                Caller::come_back(addr, token, memory.clone()),
                Caller::come_back(addr, other, memory),
            )
            .await;
            assert!(right.recovered && !wrong.recovered);
            right
        }
    });
    for mut caller in join_all(coming).await {
        assert_eq!(sids[caller.memory.pid.as_deref().unwrap()], caller.sid);
        assert_eq!(caller.contents(1).await, ["meanwhile"]);
    }
    drop(users);
    join_all(servers.into_iter().map(TestServer::stop)).await;
}
