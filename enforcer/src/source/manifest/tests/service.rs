use super::{objects, problems, yaml};
use crate::cluster::object::{EndpointSlice, Key, Object, Protocol, Service, ServicePort, SlicePort};

fn service(addresses: &[&str], ports: &[(&str, Protocol, u16, Option<u16>)]) -> Object {
    let port = |(name, protocol, port, node_port): &(&str, _, _, _)| ServicePort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
        node_port: *node_port,
    };
    Object::Service(Service {
        key: Key::new("shop", "web"),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ports: ports.iter().map(port).collect(),
    })
}

fn slice(addresses: &[&str], ports: &[(&str, Protocol, u16)]) -> EndpointSlice {
    let port = |(name, protocol, port): &(&str, _, _)| SlicePort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
    };
    EndpointSlice {
        key: Key::new("shop", "web-1"),
        service: "web".into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        draining: [].into(),
        ports: ports.iter().map(port).collect(),
        defective: false,
    }
}

fn service_yaml(rest: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\n{rest}")
}

fn slice_yaml(rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{namespace: shop, name: web-1, labels: {{kubernetes.io/service-name: web}}}}\n{rest}"
    )
}

#[test]
fn a_service_has_the_addresses_that_nodes_translate() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    for (case, rest, want) in [
        (
            "a cluster address",
            "spec: {clusterIP: 10.96.0.10, ports: [{port: 80, targetPort: http}]}",
            service(&["10.96.0.10"], &[("", tcp, 80, None)]),
        ),
        (
            "both families, several ports, a node port",
            "spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a'], type: NodePort, \
             ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP, nodePort: 0}]}",
            service(&["10.96.0.10", "fd00:96::a"], &[("http", tcp, 80, Some(30080)), ("dns", udp, 53, None)]),
        ),
        (
            "external addresses and load balancers but for those that are proxies",
            "spec: {clusterIPs: [10.96.0.10], externalIPs: [192.0.2.7], ports: [{port: 80}]}\n\
             status: {loadBalancer: {ingress: [{ip: 192.0.2.8}, {hostname: lb.example}, \
             {ip: 192.0.2.9, ipMode: Proxy}, {ip: 192.0.2.10, ipMode: VIP}]}}",
            service(&["10.96.0.10", "192.0.2.7", "192.0.2.8", "192.0.2.10"], &[("", tcp, 80, None)]),
        ),
        (
            "headless",
            "spec: {clusterIP: None, clusterIPs: [None], externalIPs: [192.0.2.7]}",
            service(&[], &[]),
        ),
        (
            "not yet given an address",
            "spec: {externalIPs: [192.0.2.7], ports: [{port: 80}]}",
            service(&[], &[]),
        ),
        ("a name", "spec: {type: ExternalName, externalName: a.example, clusterIP: ''}", service(&[], &[])),
    ] {
        let loaded = yaml(&service_yaml(rest));
        assert_eq!((objects(&loaded), problems(&loaded)), (vec![want], vec![]), "{case}");
    }
}

#[test]
fn of_a_service_the_unreadable_part_is_left_out() {
    for (rest, want, problem) in [
        (
            "spec: {clusterIP: 10.96.0.10, ports: [{port: 80}, {port: 70000}]}",
            service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)]),
            "m.yaml:4: Service shop/web: spec.ports[1].port: invalid value: integer `70000`, expected u16",
        ),
        (
            "spec: {clusterIP: 10.96.0.10, ports: [{port: 80, protocol: ICMP}]}",
            service(&["10.96.0.10"], &[]),
            "m.yaml:4: Service shop/web: spec.ports[0].protocol: \"ICMP\" is none of TCP, UDP, SCTP",
        ),
        (
            "spec: {clusterIPs: [10.96.0.10, 10.96.0.300]}",
            service(&["10.96.0.10"], &[]),
            "m.yaml:4: Service shop/web: spec.clusterIPs[1]: \"10.96.0.300\" is not an IP address",
        ),
    ] {
        let loaded = yaml(&service_yaml(rest));
        assert_eq!((objects(&loaded), problems(&loaded)), (vec![want], vec![problem.to_owned()]), "{rest}");
    }
}

#[test]
fn a_slice_has_the_endpoints_that_may_get_traffic() {
    let loaded = yaml(&slice_yaml(
        r"addressType: IPv4
endpoints:
- {addresses: [10.244.1.1]}
- {addresses: [10.244.1.2], conditions: }
- {addresses: [10.244.1.3], conditions: {ready: true, serving: false}}
- {addresses: [10.244.1.4], conditions: {ready: false}}
- {addresses: [10.244.1.5], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.1.6], conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.244.1.7], conditions: {ready: false, serving: true, terminating: false}}
- {addresses: [10.244.1.8], conditions: {ready: false, terminating: true}}
ports:
- {name: http, port: 8080}
- {port: 53, protocol: UDP}
- {name: any, port: }
",
    ));
    let want = EndpointSlice {
        draining: ["10.244.1.4", "10.244.1.6", "10.244.1.7"].map(|a| a.parse().unwrap()).into(),
        ..slice(
            &["10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.5", "10.244.1.8"],
            &[("http", Protocol::Tcp, 8080), ("", Protocol::Udp, 53)],
        )
    };
    assert_eq!((objects(&loaded), problems(&loaded)), (vec![Object::EndpointSlice(want)], vec![]));

    let loaded =
        yaml(&slice_yaml("addressType: FQDN\nendpoints: [{addresses: [a.example]}]\nports: [{port: 80}]"));
    let want = slice(&[], &[("", Protocol::Tcp, 80)]);
    assert_eq!((objects(&loaded), problems(&loaded)), (vec![Object::EndpointSlice(want)], vec![]));
}

#[test]
fn a_slice_that_is_not_readable_to_the_end_says_so() {
    for (rest, addresses, problem) in [
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.244.1.1, 'fd00::1']}]",
            &["10.244.1.1"][..],
            "m.yaml:5: EndpointSlice shop/web-1: endpoints[0].addresses[1]: fd00::1 is not of the slice's addressType",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.244.1]}]",
            &[],
            "m.yaml:5: EndpointSlice shop/web-1: endpoints[0].addresses[0]: \"10.244.1\" is not an IP address",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.244.1.1], conditions: {ready: yes}}]",
            &[],
            "m.yaml:5: EndpointSlice shop/web-1: endpoints[0].conditions.ready: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "addressType: IPv5",
            &[],
            "m.yaml:4: EndpointSlice shop/web-1: addressType: \"IPv5\" is none of IPv4, IPv6, FQDN",
        ),
        (
            "addressType: IPv6\nports: [{port: 0}]",
            &[],
            "m.yaml:5: EndpointSlice shop/web-1: ports[0].port: 0 is not a port from 1 to 65535",
        ),
    ] {
        let loaded = yaml(&slice_yaml(rest));
        let want = Object::EndpointSlice(EndpointSlice { defective: true, ..slice(addresses, &[]) });
        assert_eq!((objects(&loaded), problems(&loaded)), (vec![want], vec![problem.to_owned()]), "{rest}");
        assert_eq!(loaded.problems[0].effect, "egress policies admit nothing to its Service");
    }
}
