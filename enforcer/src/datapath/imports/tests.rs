use super::*;

const CLIENT: &str = "10.244.1.5:40000";
const SERVICE: &str = "10.96.0.1:80";
const SERVER: &str = "10.244.1.6:8080";
const GATEWAY: &str = "10.244.1.1:2000";
const FAR: &str = "10.244.2.9:40000";

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

/// Two endpoints of node 10.244.1.1.
fn known() -> Known {
    Known {
        endpoints: [(at(CLIENT).ip(), 7), (at(SERVER).ip(), 8)].into(),
        adopted: [7, 8].into(),
        node: [at(GATEWAY).ip()].into(),
        tracked: Some(Vec::new()),
        now: 5 << 30,
    }
}

fn conversation(local: &str, remote: &str, began: Side) -> Conversation {
    let (local, remote) = (at(local), at(remote));
    Conversation {
        protocol: 6,
        local,
        remote,
        began,
        answered: true,
        local_closed: false,
        remote_closed: false,
    }
}

fn began(local: &str, remote: &str) -> Conversation {
    conversation(local, remote, Side::Local)
}

fn asked(local: &str, remote: &str) -> Conversation {
    conversation(local, remote, Side::Remote)
}

fn tracked(client: &str, asked: &str, server: &str, seen_as: &str) -> Tracked {
    Tracked { protocol: 6, client: at(client), asked: at(asked), server: at(server), seen_as: at(seen_as) }
}

/// Opener, asked, who counts, and the rest of what the entries say.
type Told = (String, String, &'static str, u8, u8, u16);

fn told(known: &Known, conversations: &[(u32, Conversation)]) -> Vec<Told> {
    let entries = known.entries(conversations);
    entries
        .iter()
        .map(|(key, conn)| {
            let side = |side: usize| {
                SocketAddr::new(key.addresses[side], u16::from_be_bytes(key.ports_be[side])).to_string()
            };
            let opener = usize::from(conn.sides & CONN_OPENER);
            let counter = usize::from(conn.sides & CONN_COUNTER != 0);
            assert_eq!((conn.started, conn.last_seen, conn.ends), (5 << 30, 5, Default::default()));
            let who = if counter == opener { "opener" } else { "asked" };
            (side(opener), side(opener ^ 1), who, conn.sides & CONN_STRANGER, conn.state, conn.origin)
        })
        .collect()
}

fn entry(opener: &str, asked: &str, who: &'static str, stranger: u8, state: u8, origin: u16) -> Told {
    (opener.into(), asked.into(), who, stranger, CONN_REPLIED | state, origin)
}

#[test]
fn a_connection_between_two_pods_is_one_entry_whichever_end_tells() {
    let want = [entry(CLIENT, SERVER, "opener", 0, 0, 7)];
    let (client, server) = ((7, began(CLIENT, SERVER)), (8, asked(SERVER, CLIENT)));
    assert_eq!(told(&known(), &[client, server]), want);
    assert_eq!(told(&known(), &[server, client]), want);
    assert_eq!(told(&known(), &[client]), want);
}

#[test]
fn who_listens_is_surer_of_who_began() {
    // The server cannot be told from a client by its socket alone.
    let both = [(7, began(CLIENT, SERVER)), (8, began(SERVER, CLIENT))];
    assert_eq!(told(&known(), &both).len(), 1);
    let sure = [(8, began(SERVER, CLIENT)), (7, asked(CLIENT, SERVER))];
    assert_eq!(told(&known(), &sure), [entry(SERVER, CLIENT, "opener", 0, 0, 8)]);
}

#[test]
fn connections_with_others_are_counted_and_judged_at_their_one_end() {
    assert_eq!(told(&known(), &[(8, asked(SERVER, FAR))]), [entry(FAR, SERVER, "asked", 0, 0, 8)]);
    assert_eq!(told(&known(), &[(7, began(CLIENT, FAR))]), [entry(CLIENT, FAR, "opener", 0, 0, 7)]);
    assert_eq!(
        told(&known(), &[(7, began(CLIENT, SERVICE))]),
        [entry(CLIENT, SERVICE, "opener", 0, 0, 7)],
        "a Service's address, as the pod sees it"
    );
}

#[test]
fn through_a_service_each_end_has_an_entry_and_the_clients_egress_is_judged_at_the_servers() {
    assert_eq!(
        told(&known(), &[(7, began(CLIENT, SERVICE)), (8, asked(SERVER, CLIENT))]),
        [entry(CLIENT, SERVICE, "opener", 0, 0, 7), entry(CLIENT, SERVER, "asked", 0, CONN_TRANSLATED, 7),]
    );
}

#[test]
fn behind_an_address_of_the_node_is_whom_the_kernel_has_masqueraded() {
    let masqueraded = [(8, asked(SERVER, GATEWAY))];
    let told = |of: Option<Vec<Tracked>>| told(&Known { tracked: of, ..known() }, &masqueraded);
    let entry = |stranger, state, origin| [entry(GATEWAY, SERVER, "asked", stranger, state, origin)];
    for (case, of, want) in [
        ("a pod", Some(vec![tracked(CLIENT, SERVICE, SERVER, GATEWAY)]), entry(0, CONN_TRANSLATED, 7)),
        (
            "the pod itself",
            Some(vec![tracked(SERVER, SERVICE, SERVER, GATEWAY)]),
            entry(0, CONN_TRANSLATED, 8),
        ),
        ("the node", Some(vec![tracked(GATEWAY, SERVER, SERVER, GATEWAY)]), entry(0, 0, 8)),
        (
            "from outside",
            Some(vec![tracked("9.9.9.9:9", SERVICE, SERVER, GATEWAY)]),
            entry(CONN_STRANGER, 0, 8),
        ),
        ("somebody else's", Some(vec![tracked(CLIENT, SERVICE, FAR, GATEWAY)]), entry(CONN_STRANGER, 0, 8)),
        ("nobody is: nothing is tracked", Some(vec![]), entry(0, 0, 8)),
        ("the kernel does not say", None, entry(CONN_STRANGER, 0, 8)),
    ] {
        assert_eq!(told(of), want, "{case}");
    }
}

#[test]
fn two_endpoints_whose_interfaces_end_alike_are_nobody_in_an_entry() {
    let mut known = known();
    known.endpoints.insert(at(FAR).ip(), 7 + (1 << 16));
    let translated = CONN_TRANSLATED;
    assert_eq!(
        told(&known, &[(8, asked(SERVER, CLIENT))]),
        [entry(CLIENT, SERVER, "asked", CONN_STRANGER, translated, 7)]
    );
}

#[test]
fn who_has_closed_is_kept_apart_by_side() {
    let half = |c: Conversation| Conversation { local_closed: true, ..c };
    // The client's address is the lower one.
    let client = [(7, half(began(CLIENT, FAR)))];
    assert_eq!(told(&known(), &client), [entry(CLIENT, FAR, "opener", 0, CONN_FIN, 7)]);
    let server = [(8, half(asked(SERVER, CLIENT)))];
    let state = CONN_TRANSLATED | CONN_FIN << 1;
    assert_eq!(told(&known(), &server), [entry(CLIENT, SERVER, "asked", 0, state, 7)]);
    let asking = [(7, Conversation { answered: false, ..began(CLIENT, FAR) })];
    assert_eq!(told(&known(), &asking)[0].4, 0);
}

#[test]
fn a_pods_talk_with_itself_and_what_is_not_its_own_are_left_out() {
    for talk in [began(CLIENT, CLIENT), began("127.0.0.1:5", "127.0.0.1:6"), began(SERVER, FAR)] {
        assert_eq!(told(&known(), &[(7, talk)]), [], "{talk:?}");
    }
}

#[test]
fn datagrams_are_known_from_what_the_kernel_tracks() {
    let udp = |tracked| Tracked { protocol: UDP, ..tracked };
    let mut known = known();
    known.tracked = Some(vec![
        udp(tracked(CLIENT, SERVICE, SERVER, CLIENT)),
        udp(tracked(FAR, SERVICE, SERVER, FAR)),
        udp(tracked(GATEWAY, "9.9.9.9:53", "9.9.9.9:53", GATEWAY)),
    ]);
    assert_eq!(
        told(&known, &[]),
        [
            entry(CLIENT, SERVICE, "opener", 0, 0, 7),
            entry(CLIENT, SERVER, "asked", 0, CONN_TRANSLATED, 7),
            entry(FAR, SERVER, "asked", 0, 0, 8),
        ]
    );
    known.adopted = [7].into();
    assert_eq!(
        told(&known, &[]),
        [entry(CLIENT, SERVICE, "opener", 0, 0, 7)],
        "the server is enforced already"
    );
}
