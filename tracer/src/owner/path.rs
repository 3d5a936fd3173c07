//! What the path of a control group tells of containers and systemd units. Plain text: reads nothing.

/// The container that a group is, or lies in: its runtime and id.
pub(crate) fn container(path: &str) -> Option<(&'static str, &str)> {
    /// What runtimes put before the id in a scope's name.
    const SCOPES: [(&str, &str); 6] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("containerd-", "containerd"),
        ("crio-", "cri-o"),
        ("libpod-", "podman"),
        ("buildkit-", "buildkit"),
    ];
    /// Directories that hold groups named by nothing but the id.
    const PARENTS: [(&str, &str); 4] = [
        ("docker", "docker"),
        ("libpod_parent", "podman"),
        ("buildkit", "buildkit"),
        ("kubepods", "cri"),
    ];
    let mut parent = "";
    let mut in_pod = false;
    for part in path.split('/') {
        in_pod |= part.starts_with("kubepods");
        let name = part.strip_suffix(".scope").unwrap_or(part);
        for (prefix, runtime) in SCOPES {
            if let Some(id) = name.strip_prefix(prefix).filter(|id| is_id(id)) {
                return Some((runtime, id));
            }
        }
        // `systemd-nspawn@NAME.service`, or `machine-NAME.scope` in `machine.slice`.
        let machine = part
            .strip_prefix("systemd-nspawn@")
            .and_then(|rest| rest.strip_suffix(".service"))
            .or_else(|| {
                part.strip_prefix("machine-")
                    .filter(|_| parent == "machine.slice")?
                    .strip_suffix(".scope")
            });
        if let Some(id) = machine {
            return Some(("systemd-nspawn", id));
        }
        if is_id(part) {
            let named = PARENTS.iter().find(|(name, _)| *name == parent);
            if let Some((_, runtime)) = named {
                return Some((runtime, part));
            }
            if in_pod {
                return Some(("cri", part));
            }
        }
        parent = part;
    }
    None
}

/// Runtimes name containers by 256 bits in hexadecimal.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The systemd unit a group belongs to: the innermost service or scope, or else the innermost slice.
pub(crate) fn unit(path: &str) -> Option<&str> {
    let innermost = |suffixes: &[&str]| {
        path.rsplit('/')
            .find(|part| suffixes.iter().any(|suffix| part.ends_with(suffix)))
    };
    innermost(&[".service", ".scope"]).or_else(|| innermost(&[".slice"]))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[rstest]
    #[case::docker_systemd("/system.slice/docker-ID.scope", Some(("docker", ID)))]
    #[case::docker_cgroupfs("/docker/ID", Some(("docker", ID)))]
    #[case::containerd("/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope", Some(("containerd", ID)))]
    #[case::cri_o("/kubepods.slice/crio-ID.scope", Some(("cri-o", ID)))]
    #[case::kubelet_cgroupfs("/kubepods/burstable/pod1/ID", Some(("cri", ID)))]
    #[case::podman("/machine.slice/libpod-ID.scope/container", Some(("podman", ID)))]
    #[case::init_of_a_container("/system.slice/docker-ID.scope/init.scope", Some(("docker", ID)))]
    #[case::nspawn("/machine.slice/systemd-nspawn@web.service", Some(("systemd-nspawn", "web")))]
    #[case::machine("/machine.slice/machine-web.scope", Some(("systemd-nspawn", "web")))]
    #[case::podman_helper("/machine.slice/libpod-conmon-ID.scope", None)]
    #[case::service("/system.slice/docker.service", None)]
    #[case::nobody("/", None)]
    fn containers_are_told_by_their_groups(
        #[case] path: &str,
        #[case] expected: Option<(&str, &str)>,
    ) {
        let path = path.replace("ID", ID);
        assert_eq!(container(&path), expected);
    }

    #[rstest]
    #[case::service("/system.slice/nginx.service", Some("nginx.service"))]
    #[case::delegated("/system.slice/nginx.service/workers", Some("nginx.service"))]
    #[case::user(
        "/user.slice/user-0.slice/user@0.service/app.slice/a.scope",
        Some("a.scope")
    )]
    #[case::slice("/user.slice/user-0.slice", Some("user-0.slice"))]
    #[case::none("/build/1", None)]
    fn units_are_told_by_their_groups(#[case] path: &str, #[case] expected: Option<&str>) {
        assert_eq!(unit(path), expected);
    }
}
