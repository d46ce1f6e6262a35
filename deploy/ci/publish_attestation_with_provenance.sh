#!/usr/bin/env bash
# Logs a signed attestation in a Rekor v1, stores it with Feedser, attaches it to an event, and writes what was verified.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: publish_attestation_with_provenance.sh --event ID [--envelope FILE] [--public-key PEM] [--rekor URL] [--out FILE]

  --event ID        the event's _id, which is recorded already          (STATEMENT_ID)
  --envelope FILE   the DSSE envelope, as `stella attest --envelope-out` or cosign writes it   (ATTEST_PATH)
  --public-key PEM  the key that signed it, as `stella keys export` writes it   (ATTEST_PUBLIC_KEY)
  --rekor URL       the Rekor v1                                        (REKOR_URL)
  --out FILE        where the provenance goes; default provenance-meta.json

The names in brackets are environment variables that do the same. Feedser is reached with STELLA_REST, STELLA_CA,
STELLA_CERT, STELLA_KEY and STELLA_TENANT, as `stella up` writes them. Needs rekor-cli, jq, curl and openssl.

Exit codes: 0 attached and written, 2 wrong usage, 3 verification failed, 4 no such event or file, 1 anything else.
TEXT
}

fail() { # code, text
  printf 'publish_attestation_with_provenance: %s\n' "$2" >&2
  exit "$1"
}

event=${STATEMENT_ID:-} envelope=${ATTEST_PATH:-} public_key=${ATTEST_PUBLIC_KEY:-} rekor=${REKOR_URL:-}
out=provenance-meta.json
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --event | --envelope | --public-key | --rekor | --out)
      (($# > 1)) || fail 2 "$1 needs a value; see --help"
      case $1 in
        --event) event=$2 ;;
        --envelope) envelope=$2 ;;
        --public-key) public_key=$2 ;;
        --rekor) rekor=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    *) fail 2 "$1 is not known; see --help" ;;
  esac
done
[[ $event ]] || fail 2 "--event is missing"
[[ $event =~ ^[A-Za-z0-9._:-]+$ ]] || fail 2 "--event: \`$event\` cannot be an event's id here"
[[ $envelope ]] || fail 2 "--envelope is missing"
[[ $public_key ]] || fail 2 "--public-key is missing"
[[ $rekor ]] || fail 2 "--rekor is missing"
for name in STELLA_REST STELLA_CA STELLA_CERT STELLA_KEY STELLA_TENANT; do
  [[ ${!name:-} ]] || fail 2 "$name is not set; \`stella up\` writes it into stella.env"
done
for file in "$envelope" "$public_key"; do
  [[ -r $file ]] || fail 4 "cannot read $file"
done
for tool in rekor-cli jq curl openssl sha256sum; do
  command -v "$tool" >/dev/null || fail 1 "$tool is not installed"
done

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

# rekor-cli keeps state in the home directory; here every run is the first one.
rekor() { HOME=$work rekor-cli "$@" --rekor_server "$rekor" --format json 2>"$work/rekor.err"; }
last_words() { tail -n 1 "$work/rekor.err" | tr -d '\r'; }

rekor upload --type dsse --artifact "$envelope" --public-key "$public_key" >"$work/upload.json" ||
  fail 1 "the log did not take the envelope: $(last_words)"
# The answer names the entry in `Location` alone: of an entry that is there already its `Index` is 0.
uuid=$(jq -er '.Location | split("/") | last | select(test("^[0-9a-f]{64}([0-9a-f]{16})?$"))' "$work/upload.json") ||
  fail 1 "the log does not say where the entry is: $(cat "$work/upload.json")"
rekor get --uuid "$uuid" >"$work/entry.json" || fail 1 "entry $uuid cannot be read: $(last_words)"

envelope_digest=sha256:$(sha256sum "$envelope" | cut -d ' ' -f 1)
spki_digest=$(openssl pkey -pubin -in "$public_key" -outform DER 2>/dev/null | openssl dgst -sha256 -binary | base64) ||
  fail 1 "$public_key is not a public key"
jq -S --arg digest "$envelope_digest" --arg key "cosign:SHA256-PKIX:${spki_digest%%=*}" --slurpfile envelope "$envelope" '{
  dsse: {
    envelopeDigest: $digest,
    key: {keyId: $key},
    payloadType: $envelope[0].payloadType,
    rekor: {integratedTime: .IntegratedTime, logId: .LogID, logIndex: .LogIndex, uuid: .UUID}
  },
  trust: {verified: true}
}' "$work/entry.json" >"$work/claim.json" || fail 1 "the entry or the envelope is not JSON"

# Posts a file; what comes back goes to standard output. A refusal ends the script with its reason.
post() { # path, file
  local status
  status=$(curl --silent --show-error --connect-timeout 10 --max-time 120 --cacert "$STELLA_CA" --cert "$STELLA_CERT" --key "$STELLA_KEY" \
    --header "X-Stella-Tenant: $STELLA_TENANT" --header 'Content-Type: application/json' \
    --data-binary "@$2" --output "$work/answer.json" --write-out '%{http_code}' "$STELLA_REST$1" 2>"$work/curl.err") ||
    fail 1 "Feedser does not answer: $(tail -n 1 "$work/curl.err")"
  case $status in
    2*) cat "$work/answer.json" ;;
    *)
      local words reason code=1
      words=$(jq -r '"\(.reason): \(.detail)" + (if .field then " (\(.field))" else "" end)' "$work/answer.json" 2>/dev/null) ||
        words="status $status"
      reason=${words%%:*}
      [[ $reason == VERIFICATION_FAILED ]] && code=3
      [[ $status == 404 ]] && code=4
      fail "$code" "POST $1 is refused: $words"
      ;;
  esac
}

post /attestations "$envelope" >"$work/stored.json"
post "/events/statements/$event/provenance" "$work/claim.json" >"$work/attached.json"
# Canonical JSON, and a newline; it takes its place whole or not at all.
jq -cS '{dsse, trust}' "$work/attached.json" >"$work/meta.json"
cp -- "$work/meta.json" "$out.part" && mv -- "$out.part" "$out" || fail 1 "cannot write $out"
