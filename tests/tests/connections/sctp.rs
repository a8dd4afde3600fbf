//! SCTP by hand: the kernel need not know it, the policies do.

use lab::{
    raw::{Packet, SYN},
    sniffer::Sniffer,
};

use crate::stage::{FAMILIES, arrive, at, lab_with, packets, policy, vanish};

const ADMIT: &str = "policyTypes: [Ingress, Egress], ingress: [\
    {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 7000, protocol: SCTP}]}, \
    {ports: [{port: 80}]}]";

#[test]
fn sctp_passes_by_its_ports_and_its_protocol() {
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2", "other/guest-1", "other/guest-2"]);
    policy(&lab, "db", "db", ADMIT);
    lab.settle().unwrap();
    let db = lab.pod("shop/db-1");
    let mut at_db = Sniffer::start(db.netns()).unwrap();
    for family in FAMILIES {
        let to = |port| at(&db, family, port);
        for (web, guest) in [("shop/web-1", "other/guest-1"), ("shop/web-2", "other/guest-2")] {
            let (web, guest) = (lab.pod(web), lab.pod(guest));
            let mut at_web = Sniffer::start(web.netns()).unwrap();
            let from = at(&web, family, 5000);
            let before = packets(&lab, 1, "policy-denied");
            let closed = [
                Packet::sctp_init(from, to(7001)),
                Packet::sctp_init(at(&web, family, 7000), to(80)),
                Packet::tcp(from, to(7000), SYN, &[]),
                Packet::udp(from, to(7000), b"not SCTP"),
            ];
            vanish(web.netns(), &mut at_db, &closed, &Packet::sctp_init(from, to(7000)));
            let stranger = at(&guest, family, 5000);
            let knock = Packet::tcp(stranger, to(80), SYN, &[]);
            vanish(guest.netns(), &mut at_db, &[Packet::sctp_init(stranger, to(7000))], &knock);
            let after = packets(&lab, 1, "policy-denied");
            assert!(after >= before + 5, "{family}: {before} to {after}");
            // The db, which may begin nothing, answers on the association and nowhere else.
            let beside = Packet::sctp_init(to(7000), at(&web, family, 5001));
            vanish(db.netns(), &mut at_web, &[beside], &Packet::sctp_init(to(7000), from));
        }
    }
    policy(&lab, "db", "db", &ADMIT.replace("port: 7000", "port: 7000, endPort: 7002"));
    lab.settle().unwrap();
    let web = lab.pod("shop/web-2");
    for family in FAMILIES {
        let init = |port| Packet::sctp_init(at(&web, family, 5002), at(&db, family, port));
        vanish(web.netns(), &mut at_db, &[init(6999), init(7003)], &init(7002));
        arrive(web.netns(), &mut at_db, &[init(7000), init(7001)]);
    }
}
