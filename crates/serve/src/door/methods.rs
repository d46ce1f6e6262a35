//! The methods that a server has, by path, with what the door must know of each.

use std::collections::HashMap;

use metrics::{Counter, Histogram};
use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::access::is_without_tenant;

/// Methods that need a certificate, but neither grant nor tenant.
const OPEN: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// What the door knows of a method.
pub(crate) struct Method {
    /// `/package.Service/Method`.
    pub(crate) path: Box<str>,
    /// Whether either side streams: then only the caller's deadline counts.
    pub(crate) streaming: bool,
    /// Whether its stream goes on until one side ends it: then a drain ends it.
    pub(crate) endless: bool,
    /// Whether it needs neither grant nor tenant.
    pub(crate) open: bool,
    /// Whether it is for one tenant.
    pub(crate) needs_tenant: bool,
    /// Calls that went well.
    pub(crate) ok: Counter,
    /// Seconds that calls took.
    pub(crate) seconds: Histogram,
}

/// All methods of a server.
pub(crate) struct Methods {
    list: Vec<Method>,
    by_path: HashMap<Box<str>, usize>,
}

impl Methods {
    /// The methods of these services (full names) in our contracts, and those of health and reflection.
    ///
    /// A method named `Watch…` that streams its answers is endless; so are reflection and health's.
    pub(crate) fn of(services: &[&str]) -> Self {
        let descriptors =
            FileDescriptorSet::decode(stella_proto::DESCRIPTORS).expect("the build wrote the descriptors");
        let mut list = Vec::new();
        for file in &descriptors.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                if !services.contains(&name.as_str()) {
                    continue;
                }
                for method in &service.method {
                    let path = format!("/{name}/{}", method.name());
                    let streams = method.server_streaming();
                    let endless = streams && method.name().starts_with("Watch");
                    list.push(Method::new(
                        path,
                        streams || method.client_streaming(),
                        endless,
                        false,
                    ));
                }
            }
        }
        for path in OPEN {
            let streaming = !path.ends_with("/Check");
            list.push(Method::new(path.to_owned(), streaming, streaming, true));
        }
        let by_path = list
            .iter()
            .enumerate()
            .map(|(number, method)| (method.path.clone(), number))
            .collect();
        Self { list, by_path }
    }

    pub(crate) fn number(&self, path: &str) -> Option<usize> {
        self.by_path.get(path).copied()
    }

    pub(crate) fn get(&self, number: usize) -> &Method {
        &self.list[number]
    }

    /// The paths in the order of their numbers.
    pub(crate) fn paths(&self) -> Vec<&str> {
        self.list.iter().map(|method| &*method.path).collect()
    }
}

impl Method {
    fn new(path: String, streaming: bool, endless: bool, open: bool) -> Self {
        Self {
            ok: metrics::counter!("stella_calls_total", "method" => path.clone(), "code" => "OK"),
            seconds: metrics::histogram!("stella_call_seconds", "method" => path.clone()),
            needs_tenant: !open && !is_without_tenant(&path),
            path: path.into(),
            streaming,
            endless,
            open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_known_with_its_kind() {
        let methods = Methods::of(&[
            "stella.backfill.v1.BackfillService",
            "stella.verifier.v1.VerifierService",
        ]);
        for (path, want) in [
            (
                "/stella.backfill.v1.BackfillService/CountUnproven",
                Some((false, false, false, true)),
            ),
            (
                "/stella.backfill.v1.BackfillService/WatchBackfill",
                Some((true, true, false, true)),
            ),
            (
                "/stella.verifier.v1.VerifierService/VerifyBatch",
                Some((true, false, false, true)),
            ),
            (
                "/stella.verifier.v1.VerifierService/CosignCheckpoint",
                Some((false, false, false, false)),
            ),
            (
                "/stella.verifier.v1.VerifierService/ReportFork",
                Some((false, false, false, false)),
            ),
            ("/grpc.health.v1.Health/Check", Some((false, false, true, false))),
            ("/grpc.health.v1.Health/Watch", Some((true, true, true, false))),
            ("/stella.signer.v1.SignerService/Sign", None),
            ("/stella.backfill.v1.BackfillService/countUnproven", None),
            ("stella.backfill.v1.BackfillService/CountUnproven", None),
            ("", None),
        ] {
            let got = methods.number(path).map(|number| {
                let method = methods.get(number);
                (method.streaming, method.endless, method.open, method.needs_tenant)
            });
            assert_eq!(got, want, "{path}");
        }
    }

    #[test]
    fn the_methods_without_tenant_are_in_the_contracts() {
        let methods = Methods::of(&[
            "stella.verifier.v1.VerifierService",
            "stella.signer.v1.SignerService",
        ]);
        let without: Vec<_> = methods
            .list
            .iter()
            .filter(|method| !method.open && !method.needs_tenant)
            .map(|method| &*method.path)
            .collect();
        assert_eq!(without.len(), 4, "{without:?}");
    }
}
