// Makes the collections and indexes of Feedser's database that are not there, as `stella feedser migrate` does.
//
//   mongosh "mongodb://HOST/DATABASE" deploy/mongo/migrate.js
//   STELLA_TENANT=TENANT mongosh "mongodb://HOST/DATABASE" deploy/mongo/migrate.js
//
// The second gives TENANT the events that have none. Both can be run again at any time.

const collections = ["events", "attestations"];

// An auditor's questions first, then the service's own. The list is JSON.
const indexes = [
  {"collection": "events", "key": {"subject.digest.sha256": 1, "kind": 1, "provenance.dsse.rekor.logIndex": 1}},
  {"collection": "events", "key": {"kind": 1, "trust.verified": 1, "provenance.dsse.rekor.logIndex": 1}},
  {"collection": "events", "key": {"provenance.dsse.rekor.logIndex": 1}},
  {"collection": "events", "key": {"tenant": 1, "_id": 1}},
  {"collection": "events", "key": {"tenant": 1, "subject.digest.sha256": 1, "_id": 1}},
  {"collection": "events", "key": {"tenant": 1, "provenance.dsse.rekor.logIndex": 1, "_id": 1}},
  {"collection": "events", "key": {"tenant": 1, "trust.receipt.payloadType": 1, "_id": 1}},
  {"collection": "attestations", "key": {"tenant": 1, "digests": 1}},
  {"collection": "attestations", "key": {"tenant": 1, "subjects": 1}}
];

const there = db.getCollectionNames();
for (const name of collections) {
  if (!there.includes(name)) {
    db.createCollection(name);
    print(`made collection ${name}`);
  }
}

// An index of ours that is there with other keys is refused by the server.
for (const index of indexes) {
  const name = Object.keys(index.key).map((field) => `${field}_1`).join("_");
  const made = db.runCommand({createIndexes: index.collection, indexes: [{key: index.key, name: name}]});
  if (made.ok !== 1) {
    throw new Error(`${index.collection}.${name}: ${made.errmsg}`);
  }
  if (made.numIndexesAfter > made.numIndexesBefore) {
    print(`made index ${index.collection}.${name}`);
  }
}

const tenant = process.env.STELLA_TENANT;
if (tenant) {
  const given = db.events.updateMany({tenant: {$exists: false}}, {$set: {tenant: tenant}});
  print(`gave ${given.modifiedCount} events to tenant ${tenant}`);
}
