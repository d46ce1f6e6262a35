//! Who calls, for which tenant, and whether the method table allows it.
//!
//! An identity comes from the caller's certificate alone, a tenant only from what the table grants that
//! identity: the header `x-stella-tenant` selects, it never widens. The table is a file:
//!
//! ```toml
//! [[grant]]
//! identity = "spiffe://stella.local/operator"
//! methods = ["stella.signer.v1.SignerService/Sign", "stella.feedser.v1.FeedserService/*"]
//! tenants = ["dev"]
//! ```
//!
//! `"*"` in `methods` stands for every method, in `tenants` for every tenant. Several grants of one identity add up,
//! each with its own tenants. A call that no grant covers is refused, so an empty table refuses everything.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stella_proto::status::refuse;
use tonic::{Code, Status};

use crate::fs::{self, Access as FileAccess, FsError};

/// The header that selects a tenant.
pub const TENANT_HEADER: &str = "x-stella-tenant";

/// The methods of ours that concern no tenant.
pub const WITHOUT_TENANT: [&str; 4] = [
    "/stella.verifier.v1.VerifierService/CosignCheckpoint",
    "/stella.verifier.v1.VerifierService/ReportFork",
    "/stella.verifier.v1.VerifierService/GetTrustRoots",
    "/stella.signer.v1.SignerService/WatchKeys",
];

/// A SPIFFE ID: `spiffe://trust-domain/path`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Why a text is not a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SPIFFE ID (spiffe://trust-domain/path)")]
pub struct SpiffeIdError(String);

impl SpiffeId {
    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        // The error quotes what a stranger's certificate says, so it is cut.
        let refused = || SpiffeIdError(text.chars().take(128).collect());
        let rest = text.strip_prefix("spiffe://").ok_or_else(refused)?;
        let (domain, path) = rest.split_once('/').ok_or_else(refused)?;
        let domain_ok = !domain.is_empty()
            && domain
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        let path_ok = path.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        });
        if text.len() > 2048 || domain.len() > 255 || !domain_ok || !path_ok {
            return Err(refused());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The name of a tenant: 1 to 64 letters, digits, `.`, `-` and `_`; the first a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// Why a text is not a tenant's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a tenant's name (1 to 64 of A-Z a-z 0-9 . - _)")]
pub struct TenantError(String);

impl Tenant {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, TenantError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let all = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !first || !all || text.len() > 64 {
            return Err(TenantError(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Tenant {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Tenant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Tenant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Who makes a call, as the method table has already allowed it. The server puts it into every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    identity: SpiffeId,
    tenant: Option<Tenant>,
    deadline: Option<Instant>,
}

impl Caller {
    /// A caller for tests of what lies behind the server.
    pub fn new(identity: SpiffeId, tenant: Option<Tenant>) -> Self {
        Self {
            identity,
            tenant,
            deadline: None,
        }
    }

    /// The same, who waits no longer than this.
    #[must_use]
    pub fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    /// The caller of a gRPC request.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        Self::from_extension(request.extensions().get())
    }

    /// The caller of a REST request.
    pub fn of_http(parts: &http::request::Parts) -> Result<Self, Status> {
        Self::from_extension(parts.extensions.get())
    }

    /// The identity in the caller's certificate.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// When the call is cut off, by its caller's deadline or the server's; streams may have none.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The tenant that the call is for; refused as `TENANT_REQUIRED` on a call that has none.
    pub fn tenant(&self) -> Result<&Tenant, Status> {
        self.tenant.as_ref().ok_or_else(tenant_required)
    }

    fn from_extension(found: Option<&Self>) -> Result<Self, Status> {
        found.cloned().ok_or_else(|| {
            refuse(
                Code::Unauthenticated,
                "NO_CALLER",
                "the call did not come through the server",
            )
        })
    }
}

/// Why a method table was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file could not be read or written.
    #[error("the method table could not be read or written")]
    File(#[from] FsError),
    /// The file is not a method table; the cause names line and key.
    #[error("`{}` is not a valid method table", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
}

impl TableError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => error.reason(),
            Self::Parse { .. } => "METHOD_TABLE_INVALID",
        }
    }
}

/// Who may call what, for which tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodTable {
    #[serde(default, rename = "grant")]
    grants: Vec<Grant>,
}

/// One entry of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Who.
    pub identity: SpiffeId,
    /// Which methods.
    pub methods: Vec<Methods>,
    /// For which tenants. May be empty if the methods concern no tenant.
    #[serde(default)]
    pub tenants: Vec<Tenants>,
}

/// Some methods of the services: `*`, `package.Service/*` or `package.Service/Method`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Methods(String);

/// Some tenants: `*` or one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenants {
    /// Every tenant.
    All,
    /// This one.
    One(Tenant),
}

/// Why a text does not name methods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `*`, `package.Service/*` or `package.Service/Method`")]
pub struct MethodsError(String);

impl Methods {
    /// Every method of every service.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// Every method of `services` (full names) that a grant can name, as `package.Service/Method`.
    pub fn named(services: &[&str]) -> Vec<String> {
        let mut named = Vec::new();
        for path in crate::door::Methods::of(services).paths() {
            let path = path.trim_start_matches('/');
            if services.iter().any(|service| path.starts_with(*service)) {
                named.push(path.to_owned());
            }
        }
        named
    }

    /// Whether `path` (`/package.Service/Method`) is one of them; the leading `/` may be missing.
    pub fn covers(&self, path: &str) -> bool {
        let path = path.strip_prefix('/').unwrap_or(path);
        match self.0.strip_suffix('*') {
            Some("") => true,
            Some(service) => path
                .strip_prefix(service)
                .is_some_and(|method| !method.is_empty()),
            None => path == self.0,
        }
    }
}

impl FromStr for Methods {
    type Err = MethodsError;

    fn from_str(text: &str) -> Result<Self, MethodsError> {
        let name = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'))
        };
        let good = text == "*"
            || text
                .split_once('/')
                .is_some_and(|(service, method)| name(service) && (method == "*" || name(method)));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(MethodsError(text.chars().take(128).collect()))
        }
    }
}

impl<'de> Deserialize<'de> for Methods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Methods {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl FromStr for Tenants {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, TenantError> {
        if text == "*" {
            Ok(Self::All)
        } else {
            text.parse().map(Self::One)
        }
    }
}

impl<'de> Deserialize<'de> for Tenants {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Tenants {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::All => "*",
            Self::One(tenant) => tenant.as_str(),
        })
    }
}

impl MethodTable {
    /// Reads the table.
    pub fn load(path: &Path) -> Result<Self, TableError> {
        Self::parse(&fs::read_text(path)?, path)
    }

    /// Writes the table as one step; running services take it up within about a second.
    pub fn save(&self, path: &Path) -> Result<(), TableError> {
        Ok(fs::write_atomic(
            path,
            self.to_toml().as_bytes(),
            FileAccess::Everybody,
        )?)
    }

    /// The table as its file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("strings and lists of strings are TOML")
    }

    /// The entries, in the order of the file.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Adds an entry; one that stands there already is not added twice.
    pub fn add(&mut self, grant: Grant) {
        if !self.grants.contains(&grant) {
            self.grants.push(grant);
        }
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, TableError> {
        toml::from_str(text).map_err(|source| TableError::Parse {
            path: path.to_owned(),
            source,
        })
    }

    /// The table worked out for these methods (`/package.Service/Method`), so that a call costs two look-ups.
    pub(crate) fn resolve(&self, methods: &[&str]) -> Resolved {
        let mut identities: HashMap<SpiffeId, Box<[Option<Granted>]>> = HashMap::new();
        for grant in &self.grants {
            let row = identities
                .entry(grant.identity.clone())
                .or_insert_with(|| vec![None; methods.len()].into());
            for (slot, path) in row.iter_mut().zip(methods) {
                if grant.methods.iter().any(|methods| methods.covers(path)) {
                    slot.get_or_insert_default().add(&grant.tenants);
                }
            }
        }
        Resolved { identities }
    }
}

/// Whether a method of ours concerns no tenant.
pub(crate) fn is_without_tenant(path: &str) -> bool {
    WITHOUT_TENANT.contains(&path)
}

/// The tenants that one identity may select on one method.
#[derive(Clone, Debug, Default)]
struct Granted {
    all: bool,
    some: HashSet<Tenant>,
}

impl Granted {
    fn add(&mut self, tenants: &[Tenants]) {
        for tenant in tenants {
            match tenant {
                Tenants::All => self.all = true,
                Tenants::One(tenant) => {
                    self.some.insert(tenant.clone());
                }
            }
        }
    }

    fn select(&self, name: &str) -> Option<Tenant> {
        match self.some.get(name) {
            Some(tenant) => Some(tenant.clone()),
            None if self.all => name.parse().ok(),
            None => None,
        }
    }
}

/// The method table of one server, indexed by identity and by the number of the method.
#[derive(Debug)]
pub(crate) struct Resolved {
    identities: HashMap<SpiffeId, Box<[Option<Granted>]>>,
}

impl Resolved {
    /// Decides on one call. `tenant` is the header's text; `needs_tenant` is false where the method concerns none.
    pub(crate) fn decide(
        &self,
        identity: &SpiffeId,
        method: usize,
        tenant: Option<&http::HeaderValue>,
        needs_tenant: bool,
    ) -> Result<Option<Tenant>, Status> {
        let granted = self
            .identities
            .get(identity)
            .and_then(|row| row.get(method)?.as_ref());
        let Some(granted) = granted else {
            return Err(method_not_allowed(identity));
        };
        if !needs_tenant {
            return Ok(None);
        }
        let Some(name) = tenant else {
            return Err(tenant_required());
        };
        match name.to_str().ok().and_then(|name| granted.select(name)) {
            Some(tenant) => Ok(Some(tenant)),
            None => Err(refuse(
                Code::PermissionDenied,
                "TENANT_NOT_ALLOWED",
                format!("`{identity}` may not act for the tenant that `{TENANT_HEADER}` names"),
            )),
        }
    }
}

fn method_not_allowed(identity: &SpiffeId) -> Status {
    refuse(
        Code::PermissionDenied,
        "METHOD_NOT_ALLOWED",
        format!("the method table does not allow `{identity}` this method"),
    )
}

fn tenant_required() -> Status {
    refuse(
        Code::PermissionDenied,
        "TENANT_REQUIRED",
        format!("`{TENANT_HEADER}` must name the tenant"),
    )
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use http::HeaderValue;
    use stella_proto::status::reason;

    use super::*;

    #[test]
    fn only_a_whole_spiffe_id_parses() {
        let long = format!("spiffe://{}/a", "d".repeat(256));
        let longer = format!("spiffe://domain/{}", "p".repeat(2048));
        for (text, want) in [
            ("spiffe://stella.local/signer", true),
            ("spiffe://d/a/b_c-1.2", true),
            ("spiffe://stella.local", false),
            ("spiffe://stella.local/", false),
            ("spiffe:///signer", false),
            ("spiffe://Stella.local/signer", false),
            ("spiffe://stella.local/a//b", false),
            ("spiffe://stella.local/a/../b", false),
            ("spiffe://stella.local/a?x", false),
            ("spiffe://stella.local/a b", false),
            ("spiffe://stella.local:1/a", false),
            ("spiffe://user@stella.local/a", false),
            ("https://stella.local/signer", false),
            ("", false),
            (long.as_str(), false),
            (longer.as_str(), false),
        ] {
            let want = if want {
                Ok(text.to_owned())
            } else {
                Err(SpiffeIdError(text.chars().take(128).collect()))
            };
            assert_eq!(text.parse::<SpiffeId>().map(|id| id.to_string()), want, "{text}");
        }
    }

    const TABLE: &str = r#"
[[grant]]
identity = "spiffe://s/all"
methods = ["*"]
tenants = ["*"]
[[grant]]
identity = "spiffe://s/one"
methods = ["p.A/*"]
tenants = ["dev"]
[[grant]]
identity = "spiffe://s/one"
methods = ["p.B/Get"]
tenants = ["dev", "prod"]
[[grant]]
identity = "spiffe://s/none"
methods = ["p.A/Get"]
"#;

    #[test]
    fn a_call_is_allowed_by_a_grant_and_by_nothing_else() {
        let methods = ["/p.A/Get", "/p.B/Get", "/p.B/Put", "/p.AB/Get"];
        let table = MethodTable::parse(TABLE, Path::new("t"))
            .unwrap()
            .resolve(&methods);
        let allowed = |tenant: &str| Ok(Some(tenant.to_owned()));
        for (who, method, tenant, want) in [
            ("all", "/p.B/Put", Some("anything"), allowed("anything")),
            ("all", "/p.B/Put", Some("not a tenant"), Err("TENANT_NOT_ALLOWED")),
            ("all", "/p.B/Put", Some(""), Err("TENANT_NOT_ALLOWED")),
            ("all", "/p.B/Put", Some("\u{e9}"), Err("TENANT_NOT_ALLOWED")),
            ("all", "/p.B/Put", None, Err("TENANT_REQUIRED")),
            ("one", "/p.A/Get", Some("dev"), allowed("dev")),
            ("one", "/p.A/Get", Some("prod"), Err("TENANT_NOT_ALLOWED")),
            ("one", "/p.A/Get", Some("*"), Err("TENANT_NOT_ALLOWED")),
            ("one", "/p.B/Get", Some("prod"), allowed("prod")),
            ("one", "/p.B/Put", Some("dev"), Err("METHOD_NOT_ALLOWED")),
            ("one", "/p.AB/Get", Some("dev"), Err("METHOD_NOT_ALLOWED")),
            ("none", "/p.A/Get", Some("dev"), Err("TENANT_NOT_ALLOWED")),
            ("none", "/p.A/Get", None, Err("TENANT_REQUIRED")),
            ("unknown", "/p.A/Get", Some("dev"), Err("METHOD_NOT_ALLOWED")),
        ] {
            let identity = format!("spiffe://s/{who}").parse().unwrap();
            let number = methods.iter().position(|path| *path == method).unwrap();
            let header = tenant.map(|name| HeaderValue::from_bytes(name.as_bytes()).unwrap());
            let got = table.decide(&identity, number, header.as_ref(), true);
            let got = got
                .map(|tenant| tenant.map(|tenant| tenant.to_string()))
                .map_err(|status| {
                    assert_eq!(status.code(), Code::PermissionDenied);
                    reason(&status).unwrap()
                });
            assert_eq!(got, want.map_err(str::to_owned), "{who} {method} {tenant:?}");
        }
        let none = "spiffe://s/none".parse().unwrap();
        assert_eq!(table.decide(&none, 0, None, false).unwrap(), None);
    }

    #[test]
    fn a_table_with_an_error_is_refused_and_a_good_one_is_written_as_it_was_read() {
        for (case, from, to, names) in [
            ("unknown key", "[[grant]]", "[[grant]]\nrole = \"x\"", "role"),
            ("unknown table", "[[grant]]", "[[grants]]", "grants"),
            ("no identity", "spiffe://s/all", "all", "SPIFFE"),
            ("no methods", "methods = [\"*\"]", "", "methods"),
            ("half a star", "p.A/*", "p.A*", "p.A*"),
            ("path with a slash", "p.A/*", "/p.A/Get", "/p.A/Get"),
            ("bad tenant", "\"dev\"", "\"d v\"", "tenant"),
        ] {
            let text = TABLE.replacen(from, to, 1);
            assert_ne!(text, TABLE, "{case}");
            let error = MethodTable::parse(&text, Path::new("t")).unwrap_err();
            assert_eq!(error.reason(), "METHOD_TABLE_INVALID", "{case}");
            let cause = error.source().unwrap().to_string();
            assert!(cause.contains(names), "{case}: {cause}");
        }
        let mut table = MethodTable::parse(TABLE, Path::new("t")).unwrap();
        assert_eq!(
            MethodTable::parse(&table.to_toml(), Path::new("t")).unwrap(),
            table
        );
        let same = table.clone();
        table.add(same.grants()[0].clone());
        assert_eq!(table, same);
    }
}
