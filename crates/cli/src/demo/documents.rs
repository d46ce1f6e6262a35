//! Real documents about this very program: its SBOM from the lock file that it was built with, a VEX document, a scan
//! report and its build provenance.

use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::timestamp::Timestamp;

use crate::failure::Failure;

/// The lock file of this workspace, as it was when this program was built.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// One package of the lock file.
struct Package {
    name: String,
    version: String,
    checksum: Option<String>,
    dependencies: Vec<String>,
}

impl Package {
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version.replace('+', "%2B"))
    }
}

fn packages() -> Result<Vec<Package>, Failure> {
    let lock: toml::Value =
        toml::from_str(LOCK).map_err(|error| Failure::new(format!("Cargo.lock: {error}")))?;
    let listed = lock
        .get("package")
        .and_then(toml::Value::as_array)
        .cloned()
        .unwrap_or_default();
    let text = |package: &toml::Value, name: &str| {
        package.get(name).and_then(toml::Value::as_str).map(str::to_owned)
    };
    let read = listed.iter().filter_map(|package| {
        let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
        Some(Package {
            name: text(package, "name")?,
            version: text(package, "version")?,
            checksum: text(package, "checksum"),
            dependencies: dependencies
                .into_iter()
                .flatten()
                .filter_map(|d| d.as_str().map(str::to_owned))
                .collect(),
        })
    });
    Ok(read.collect())
}

/// The purl that a dependency of the lock file (`name` or `name version`) means.
fn resolve<'p>(dependency: &str, packages: &'p [Package]) -> Option<&'p Package> {
    let mut words = dependency.split_whitespace();
    let (name, version) = (words.next()?, words.next());
    packages
        .iter()
        .find(|package| package.name == name && version.is_none_or(|version| package.version == version))
}

/// A CycloneDX 1.6 SBOM of this workspace, as of the build.
///
/// # Errors
/// The embedded lock file does not parse.
pub(super) fn sbom(digest: &Digest, now: Timestamp) -> Result<Value, Failure> {
    let packages = packages()?;
    let (ours, foreign): (Vec<&Package>, Vec<&Package>) =
        packages.iter().partition(|package| package.checksum.is_none());
    let root = "stella";
    let components: Vec<Value> = foreign
        .iter()
        .map(|package| {
            json!({
                "bom-ref": package.purl(), "name": package.name, "purl": package.purl(), "type": "library",
                "hashes": [{"alg": "SHA-256", "content": package.checksum}], "version": package.version,
            })
        })
        .collect();
    let edges = |package: &Package| -> Vec<String> {
        let found = package
            .dependencies
            .iter()
            .filter_map(|name| resolve(name, &packages));
        let foreign = found.filter(|package| package.checksum.is_some());
        let mut purls: Vec<String> = foreign.map(Package::purl).collect();
        purls.sort();
        purls.dedup();
        purls
    };
    let mut direct: Vec<String> = ours.iter().flat_map(|package| edges(package)).collect();
    direct.sort();
    direct.dedup();
    let mut dependencies = vec![json!({"dependsOn": direct, "ref": root})];
    dependencies.extend(
        foreign
            .iter()
            .map(|package| json!({"dependsOn": edges(package), "ref": package.purl()})),
    );
    Ok(json!({
        "bomFormat": "CycloneDX",
        "components": components,
        "dependencies": dependencies,
        "metadata": {
            "component": {
                "bom-ref": root, "hashes": [{"alg": "SHA-256", "content": digest.hex()}], "name": "stella",
                "type": "application", "version": env!("CARGO_PKG_VERSION"),
            },
            "timestamp": now.to_string(),
            "tools": {"components": [{"name": "stella", "type": "application", "version": env!("CARGO_PKG_VERSION")}]},
        },
        "specVersion": "1.6",
        "version": 1,
    }))
}

/// An OpenVEX 0.2.0 document: a component of the SBOM is not affected.
pub(super) fn vex(digest: &Digest, now: Timestamp) -> Value {
    json!({
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": format!("https://stella.ops/vex/{}", &digest.hex()[..16]),
        "author": "Stella Provenance",
        "statements": [{
            "justification": "vulnerable_code_not_in_execute_path",
            "products": [{"@id": format!("pkg:generic/stella@{}", env!("CARGO_PKG_VERSION")), "hashes": {"sha-256": digest.hex()}}],
            "status": "not_affected",
            "timestamp": now.to_string(),
            "vulnerability": {"name": "CVE-2023-53159"},
        }],
        "timestamp": now.to_string(),
        "version": 1,
    })
}

/// A scan report in cosign's vulnerability format: what was scanned and with what; nothing was found.
pub(super) fn scan(sbom: &Value, now: Timestamp) -> Value {
    let count = sbom["components"].as_array().map_or(0, Vec::len);
    json!({
        "invocation": {"parameters": null, "producer_id": "stella-demo", "uri": ""},
        "metadata": {"scanFinishedOn": now.to_string(), "scanStartedOn": now.to_string()},
        "scanner": {
            "db": {"lastUpdate": now.to_string(), "uri": "", "version": "none"},
            "result": {"componentsRead": count, "matches": []},
            "uri": "pkg:generic/stella-demo-lock-reader",
            "version": env!("CARGO_PKG_VERSION"),
        },
    })
}

/// SLSA provenance v1 of the running program.
pub(super) fn build(now: Timestamp) -> Value {
    json!({
        "buildDefinition": {
            "buildType": "https://stella.ops/build/cargo@v1",
            "externalParameters": {"command": "cargo build", "target": env!("STELLA_TARGET")},
            "internalParameters": {},
            "resolvedDependencies": [
                {"digest": {"sha256": Digest::of(LOCK.as_bytes()).hex()}, "name": "Cargo.lock"},
            ],
        },
        "runDetails": {
            "builder": {"id": "https://stella.ops/builder/local"},
            "metadata": {"finishedOn": now.to_string(), "invocationId": env!("STELLA_COMMIT")},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dependency_of_the_sbom_is_one_of_its_components() {
        let sbom = sbom(&Digest::of(b"stella"), Timestamp::from_unix(0)).expect("the lock file parses");
        let components = sbom["components"].as_array().expect("a list");
        let known: Vec<&str> = components
            .iter()
            .filter_map(|component| component["bom-ref"].as_str())
            .collect();
        assert!(
            known.iter().any(|purl| purl.starts_with("pkg:cargo/rustls@")),
            "{} components",
            known.len()
        );
        for edge in sbom["dependencies"].as_array().expect("a list") {
            for target in edge["dependsOn"].as_array().expect("a list") {
                assert!(known.contains(&target.as_str().expect("a text")), "{target}");
            }
        }
    }
}
