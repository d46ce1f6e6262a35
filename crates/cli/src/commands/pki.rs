//! `stella pki` and `stella access`: certificates and method-table entries of a development directory.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;
use stella_serve::access::{Grant, MethodTable, SpiffeId, Tenants, WITHOUT_TENANT};
use stella_serve::pki::{DevCa, Order};

use crate::devdir::{DevDir, methods};
use crate::failure::Failure;
use crate::output::{Output, print_json, print_line};

/// Issues certificates of the development authority
#[derive(Subcommand, Debug)]
pub enum Pki {
    /// Issues a client certificate, for an operator or a CI job
    Issue {
        /// The directory of `stella up`
        #[arg(long, value_name = "DIR", default_value = "./.stella-up")]
        dir: PathBuf,
        /// Whose certificate it is
        #[arg(long, value_name = "spiffe://…")]
        id: SpiffeId,
        /// Where cert.pem and key.pem go; default: DIR/clients/NAME
        #[arg(short = 'o', long = "out", value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// Says who may call what
#[derive(Subcommand, Debug)]
pub enum Access {
    /// Adds an entry to the method table; the services read it while they run
    Grant {
        /// The directory of `stella up`
        #[arg(long, value_name = "DIR", default_value = "./.stella-up")]
        dir: PathBuf,
        /// To whom
        #[arg(long, value_name = "spiffe://…")]
        id: SpiffeId,
        /// A method: `*`, package.Service/* or package.Service/Method; may be given several times
        #[arg(long = "method", value_name = "METHOD", required = true)]
        methods: Vec<String>,
        /// For this tenant; may be given several times
        #[arg(long = "for-tenant", value_name = "NAME")]
        tenants: Vec<String>,
    },
}

fn open(dir: &std::path::Path) -> Result<DevDir, Failure> {
    DevDir::open(dir).map_err(|error| Failure::not_found(format!("{error:#}")))
}

pub(crate) fn pki(command: Pki, output: Output) -> Result<(), Failure> {
    let Pki::Issue { dir, id, out } = command;
    let dir = open(&dir)?;
    let name = id.as_str().rsplit('/').next().unwrap_or_default().to_owned();
    let out = out.unwrap_or_else(|| dir.path(&format!("clients/{name}")));
    std::fs::create_dir_all(&out)?;
    let ca = DevCa::open(&dir.path("pki")).map_err(anyhow::Error::from)?;
    let (certificate, key) = (out.join("cert.pem"), out.join("key.pem"));
    ca.issue_to(&Order::client(id.clone()), &certificate, &key)
        .map_err(anyhow::Error::from)?;
    match output {
        Output::Json => print_json(&json!({"certificate": certificate, "id": id.to_string(), "key": key})),
        Output::Table => print_line(&format!("wrote {} and {}", certificate.display(), key.display())),
    }
}

pub(crate) fn access(command: Access, output: Output) -> Result<(), Failure> {
    let Access::Grant {
        dir,
        id,
        methods: texts,
        tenants,
    } = command;
    let path = open(&dir)?.path("access.toml");
    let usage = |error: anyhow::Error| Failure::usage(format!("{error:#}"));
    let listed = texts
        .iter()
        .map(|text| methods(text))
        .collect::<anyhow::Result<_>>()
        .map_err(usage)?;
    let concerns_tenants = texts.iter().any(|text| {
        let path = format!("/{}", text.trim_start_matches('/'));
        !WITHOUT_TENANT.contains(&path.as_str())
    });
    if tenants.is_empty() && concerns_tenants {
        return Err(Failure::usage("a grant without tenants allows nothing")
            .hint("name each with --for-tenant, or all with --for-tenant '*'"));
    }
    let granted = tenants.iter().map(|name| match name.as_str() {
        "*" => Ok(Tenants::All),
        name => Ok(Tenants::One(name.parse()?)),
    });
    let granted = granted.collect::<anyhow::Result<_>>().map_err(usage)?;
    let mut table = MethodTable::load(&path).map_err(anyhow::Error::from)?;
    table.add(Grant {
        identity: id.clone(),
        methods: listed,
        tenants: granted,
    });
    table.save(&path).map_err(anyhow::Error::from)?;
    match output {
        Output::Json => print_json(&json!({"id": id.to_string(), "methods": texts, "tenants": tenants})),
        Output::Table => print_line(&format!("{id} may call {}", texts.join(", "))),
    }
}
