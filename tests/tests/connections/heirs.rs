//! The next pod with an address inherits neither the last one's rights nor its connections.

use lab::{
    PodSpec, Transport,
    raw::{ACK, Packet, SYN},
    sniffer::Sniffer,
};

use crate::stage::{FAMILIES, at, connect_from, exchange, lab_with, policy, vanish};

const PORT: u16 = 42_000;

#[test]
fn an_heir_cannot_go_on_with_the_connections_of_the_pod_before() {
    let lab = lab_with(&["shop/db-1", "shop/db-2", "shop/web-1"]);
    policy(
        &lab,
        "db",
        "db",
        "policyTypes: [Ingress], ingress: [\
            {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}, {ports: [{port: 53, protocol: UDP}]}]",
    );
    lab.settle().unwrap();
    let dbs = ["shop/db-1", "shop/db-2"].map(|db| lab.pod(db));
    let web = lab.pod("shop/web-1");
    let addresses = FAMILIES.map(|family| web.ip(family));
    let mut left_open = Vec::new();
    for db in &dbs {
        for family in FAMILIES {
            let mut stream = connect_from(&web, at(&web, family, PORT), at(db, family, 80));
            exchange(&mut stream, b"before");
            left_open.push(stream);
        }
    }
    lab.stop_pod("shop/web-1").unwrap();
    lab.node(1).forget_last_address().unwrap();
    let spec = PodSpec::new("other/heir-1").label("app", "web").serve(Transport::Tcp, 80);
    let heir = lab.start_pod(spec).unwrap();
    assert_eq!(FAMILIES.map(|family| heir.ip(family)), addresses);
    lab.settle().unwrap();
    for db in &dbs {
        let mut at_db = Sniffer::start(db.netns()).unwrap();
        for family in FAMILIES {
            let segment = |flags, data| Packet::tcp(at(&heir, family, PORT), at(db, family, 80), flags, data);
            let inherited = [segment(ACK, &b"still me"[..]), segment(SYN, &[])];
            let allowed = Packet::udp(at(&heir, family, PORT), at(db, family, 53), b"open");
            vanish(heir.netns(), &mut at_db, &inherited, &allowed);
            // Nor does the db's side of them reach the heir.
            let mut at_heir = Sniffer::start(heir.netns()).unwrap();
            let back = Packet::tcp(at(db, family, 80), at(&heir, family, PORT), ACK, b"and me");
            let new = Packet::tcp(at(db, family, 43_000), at(&heir, family, 80), SYN, &[]);
            vanish(db.netns(), &mut at_heir, &[back], &new);
        }
    }
    drop(left_open);
}
