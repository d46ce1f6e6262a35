//! `stella up` itself dies.

use stella_testkit::stack::Stack;

use super::{Caller, is_dead, order, settled, signal, supervisor, until};

const SERVICES: [&str; 4] = ["signer", "verifier", "feedser", "backfill"];

#[tokio::test(flavor = "multi_thread")]
async fn no_service_outlives_its_supervisor_and_the_next_one_finds_data_and_ports() {
    let mut stack = Stack::start();
    let signed = Caller::of(&stack)
        .await
        .sign_until_answered(&order("before"))
        .await;
    let environment = stack.environment().clone();
    let pids = SERVICES.map(|service| stack.pid(service));

    signal(supervisor(&stack), "KILL");
    until("every service has ended", || pids.iter().all(|pid| is_dead(*pid))).await;

    stack.down();
    stack.up();
    assert_eq!(stack.environment(), &environment);
    let again = Caller::of(&stack)
        .await
        .sign_until_answered(&order("before"))
        .await;
    assert_eq!(again, signed, "the answer that was kept");
    assert_eq!(settled(&stack).await.entries(), 1);
}
