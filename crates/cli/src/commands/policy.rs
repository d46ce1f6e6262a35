//! `stella policy`: what a gate says of a stored event.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;
use stella_proto::feedser::v1 as feedser;
use stella_proto::verifier::v1 as pb;

use super::events::document;
use crate::client::Connection;
use crate::failure::{Failure, read_file};
use crate::output::{print_json, print_line};

/// Evaluates gates
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Evaluates a policy over an event and a fresh verification of its evidence
    Eval {
        /// The policy file
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// The event's id
        #[arg(long, value_name = "ID")]
        event: String,
    },
}

/// Asks the Verifier what `policy` says of an event.
///
/// # Errors
/// The event is not there, or a service refused.
pub async fn evaluate(
    connection: &Connection,
    policy: Vec<u8>,
    event_id: &str,
) -> Result<pb::EvaluatePolicyResponse, Failure> {
    let mut store = connection.feedser().await?;
    let get = feedser::GetEventRequest {
        event_id: event_id.to_owned(),
    };
    let answer = store.get_event(connection.request(get)).await?.into_inner();
    let event = answer
        .event
        .ok_or_else(|| Failure::new("Feedser sent no event"))?;
    let mut evidence = Default::default();
    if event.proven {
        let document = document(&event)?;
        let envelope_digest = document["provenance"]["dsse"]["envelopeDigest"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let get = feedser::GetAttestationRequest { envelope_digest };
        evidence = store
            .get_attestation(connection.request(get))
            .await?
            .into_inner()
            .evidence;
    }
    let request = pb::EvaluatePolicyRequest {
        policy: policy.into(),
        event: event.event,
        evidence,
        chain: Vec::new(),
    };
    Ok(connection
        .verifier()
        .await?
        .evaluate_policy(connection.request(request))
        .await?
        .into_inner())
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    let Command::Eval { policy, event } = command;
    let policy = read_file("the policy", &policy)?;
    let outcome = evaluate(connection, policy, &event).await?;
    let allowed = outcome.decision() == pb::Decision::Allow;
    let decision = if allowed { "ALLOW" } else { "FAIL" };
    if connection.is_json() {
        print_json(&json!({
            "decision": decision, "event": event, "message": outcome.message, "policyDigest": outcome.policy_digest,
            "reasons": outcome.reasons, "rule": outcome.rule,
        }))?;
    } else {
        let rule = if outcome.rule.is_empty() {
            String::new()
        } else {
            format!(" by {}", outcome.rule)
        };
        print_line(&format!("{decision}{rule}"))?;
        for reason in outcome
            .reasons
            .iter()
            .chain(Some(&outcome.message))
            .filter(|text| !text.is_empty())
        {
            print_line(&format!("  {reason}"))?;
        }
    }
    match allowed {
        true => Ok(()),
        false => Err(Failure::refused("the policy does not allow it")),
    }
}
