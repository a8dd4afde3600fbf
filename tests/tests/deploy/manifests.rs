//! Both ways of installing give the same objects, and Kubernetes knows every field of them.

use std::collections::BTreeSet;

use bulkhead::agent::settings::Settings;
use clap::Args;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::{Value, json};

use super::render::{Objects, chart, kustomize};

const ALL: [&str; 4] = ["overlays/flannel", "overlays/k3s", "uninstall/flannel", "uninstall/k3s"];

/// Decodes and encodes again: what the type does not know is lost on the way.
fn known<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let decoded: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}: {object:#}"));
    serde_json::to_value(decoded).unwrap()
}

fn decoded(object: &Value) -> Value {
    let of = |field: &str| object[field].as_str().unwrap().to_owned();
    match (&*of("apiVersion"), &*of("kind")) {
        ("v1", "Namespace") => known::<Namespace>(object),
        ("v1", "ServiceAccount") => known::<ServiceAccount>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => known::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => known::<ClusterRoleBinding>(object),
        ("apps/v1", "DaemonSet") => known::<DaemonSet>(object),
        other => panic!("no type for {other:?}"),
    }
}

fn without_namespace(mut objects: Objects) -> Objects {
    objects.retain(|(kind, _), _| kind != "Namespace"); // Helm's --create-namespace
    objects
}

fn pod(objects: &Objects, name: &str) -> Value {
    let key = ("DaemonSet".to_owned(), name.to_owned());
    objects[&key].pointer("/spec/template/spec").unwrap().clone()
}

fn containers(pod: &Value) -> Vec<&Value> {
    let of = |field: &str| pod[field].as_array().map(|a| a.iter().collect::<Vec<_>>()).unwrap_or_default();
    of("initContainers").into_iter().chain(of("containers")).collect()
}

fn environment(container: &Value) -> BTreeSet<String> {
    let pairs = container["env"].as_array().into_iter().flatten();
    pairs.map(|pair| pair["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_field_that_is_rendered_is_one_that_kubernetes_knows() {
    let rendered = ALL.map(kustomize).into_iter().chain([chart(&json!({})), chart(&json!({"k3s": true}))]);
    for (key, object) in rendered.flatten() {
        assert_eq!(decoded(&object), object, "{key:?}");
    }
    let misspelt = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "lables": {}}});
    assert_ne!(decoded(&misspelt), misspelt, "a field that nobody knows is seen");
}

#[test]
fn the_chart_renders_the_same_objects_as_kustomize() {
    for (values, overlay) in [(json!({}), "overlays/flannel"), (json!({"k3s": true}), "overlays/k3s")] {
        assert_eq!(chart(&values), without_namespace(kustomize(overlay)), "{overlay}");
    }
}

#[test]
fn every_setting_of_the_agent_can_be_given_to_the_chart() {
    // Given by the manifests themselves, or of no use in a cluster.
    let fixed = ["MANIFESTS", "KUBECONFIG", "SOCKET", "STATE", "PLUGIN", "CNI_CACHE_DIR"]
        .map(|name| format!("BULKHEAD_{name}"));
    let command = Settings::augment_args(clap::Command::new("agent"));
    let settings: BTreeSet<_> =
        command.get_arguments().filter_map(|a| Some(a.get_env()?.to_str()?.to_owned())).collect();
    let settings = &settings - &BTreeSet::from(fixed);
    let values: Value = {
        let text =
            std::fs::read_to_string(super::render::deploy().join("helm/bulkhead/values.yaml")).unwrap();
        lab::kubelet::documents(&text).unwrap().remove(0)
    };
    let given = values["settings"].as_object().unwrap().keys().map(|key| (key.clone(), json!(7)));
    let given = json!({
        "settings": given.collect::<serde_json::Map<_, _>>(),
        "cni": {"chain": "auto", "failurePolicy": "open", "confDir": "/c", "binDir": "/b"},
    });
    let objects = chart(&given);
    let pod = pod(&objects, "bulkhead");
    let agent = &pod["containers"][0];
    let missing: Vec<_> = settings.difference(&environment(agent)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new(), "a setting of its own, or in values.yaml's `settings`");
    let known = &settings | &["BULKHEAD_LOG", "BULKHEAD_METRICS_ADDRESS"].map(String::from).into();
    let unknown: Vec<_> = environment(agent).difference(&known).cloned().collect();
    assert_eq!(unknown, Vec::<String>::new(), "the agent has no such setting");
    let paths: Vec<_> = ["cni-configurations", "cni-plugins"]
        .map(|name| {
            let mounts = agent["volumeMounts"].as_array().unwrap();
            mounts.iter().find(|mount| mount["name"] == name).unwrap()["mountPath"].clone()
        })
        .into();
    assert_eq!(paths, [json!("/c"), json!("/b")]);
}

#[test]
fn without_upkeep_nothing_is_installed_into_the_chain() {
    let pod = pod(&chart(&json!({"cni": {"chain": "off"}})), "bulkhead");
    assert_eq!(pod.get("initContainers"), None);
    let off = json!({"name": "BULKHEAD_CHAIN", "value": "off"});
    assert!(pod["containers"][0]["env"].as_array().unwrap().contains(&off));
}

#[test]
fn no_container_has_more_rights_than_it_needs() {
    for overlay in ALL {
        let objects = kustomize(overlay);
        let name = if overlay.starts_with("uninstall") { "bulkhead-uninstall" } else { "bulkhead" };
        let pod = pod(&objects, name);
        for container in containers(&pod) {
            let security = &container["securityContext"];
            assert_eq!(security["privileged"], Value::Null, "{overlay}");
            assert_eq!(security["readOnlyRootFilesystem"], json!(true), "{overlay}");
            assert_eq!(security["allowPrivilegeEscalation"], json!(false), "{overlay}");
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{overlay}");
        }
        assert_eq!((&pod["hostPID"], &pod["hostIPC"]), (&Value::Null, &Value::Null), "{overlay}");
    }
    let objects = kustomize("overlays/flannel");
    let role = &objects[&("ClusterRole".to_owned(), "bulkhead".to_owned())];
    let rules: BTreeSet<_> = role["rules"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|rule| {
            let list = |field: &str| -> Vec<String> { serde_json::from_value(rule[field].clone()).unwrap() };
            list("resources").into_iter().map(move |resource| (resource, list("verbs").join(",")))
        })
        .collect();
    let watched = ["endpointslices", "namespaces", "networkpolicies", "nodes", "pods", "services"];
    let want = watched.map(|resource| (resource.to_owned(), "get,list,watch".to_owned()));
    assert_eq!(rules, want.into_iter().chain([("events".to_owned(), "create,patch".to_owned())]).collect());
}

#[test]
fn every_mount_has_its_volume_and_every_volume_its_mount() {
    let rendered = ALL.map(kustomize).into_iter().chain([chart(&json!({"k3s": true}))]);
    for (key, object) in rendered.flatten().filter(|((kind, _), _)| kind == "DaemonSet") {
        let pod = object.pointer("/spec/template/spec").unwrap();
        let named = |value: &Value| value["name"].as_str().unwrap().to_owned();
        let mounted: BTreeSet<_> = containers(pod)
            .into_iter()
            .flat_map(|container| container["volumeMounts"].as_array().unwrap())
            .map(named)
            .collect();
        let volumes: BTreeSet<_> = pod["volumes"].as_array().unwrap().iter().map(named).collect();
        assert_eq!(mounted, volumes, "{key:?}");
    }
}
