//! The Merkle tree of RFC 6962: hashes, and proofs made and checked.
//!
//! A tree is never held here as a whole. Whoever has the nodes implements [`NodeSource`]; the functions below ask it
//! only for complete subtrees, the ones that no later leaf changes. So a proof for an old size can be made from a tree
//! that has grown since.
//!
//! Proofs come from outside: their length follows from the sizes, and any other length is refused before hashing.

use aws_lc_rs::digest;

/// A SHA-256 hash of a leaf, a node or a whole tree.
pub type Hash = [u8; 32];

/// Root of the tree without leaves: SHA-256 of nothing.
pub const EMPTY_ROOT: Hash = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// Most hashes that a proof can have: one for each bit of a size, and the start of a consistency proof.
pub const MAX_PROOF: usize = 65;

/// Why a proof does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The leaf's index is not in the tree.
    #[error("leaf {index} is not in a tree of {size}")]
    IndexBeyondTree {
        /// The index asked for.
        index: u64,
        /// The tree's number of leaves.
        size: u64,
    },
    /// The new tree is smaller than the old one.
    #[error("a tree of {old} cannot have become one of {new}")]
    Shrunk {
        /// Leaves before.
        old: u64,
        /// Leaves after.
        new: u64,
    },
    /// Every tree is consistent with the empty one, so such a proof says nothing and is refused.
    #[error("a proof from the empty tree proves nothing")]
    FromEmptyTree,
    /// The proof has another number of hashes than the sizes demand.
    #[error("the proof has {found} hashes instead of {wanted}")]
    Length {
        /// What the sizes demand.
        wanted: usize,
        /// What was given.
        found: usize,
    },
    /// The proof leads to another root of the (new) tree.
    #[error("the proof leads to another root")]
    RootMismatch,
    /// The consistency proof leads to another root of the old tree.
    #[error("the proof leads to another old root")]
    OldRootMismatch,
}

impl ProofError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::IndexBeyondTree { .. } => "INDEX_BEYOND_TREE",
            Self::Shrunk { .. } => "TREE_SHRUNK",
            Self::FromEmptyTree => "PROOF_FROM_EMPTY_TREE",
            Self::Length { .. } => "PROOF_LENGTH",
            Self::RootMismatch => "ROOT_MISMATCH",
            Self::OldRootMismatch => "OLD_ROOT_MISMATCH",
        }
    }
}

/// Hash of a leaf: SHA-256 of 0x00 and the entry.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[0]);
    context.update(entry);
    to_hash(&context.finish())
}

/// Hash of an inner node: SHA-256 of 0x01 and both children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut input = [1; 65];
    input[1..33].copy_from_slice(left);
    input[33..].copy_from_slice(right);
    to_hash(&digest::digest(&digest::SHA256, &input))
}

fn to_hash(digest: &digest::Digest) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Checks that the leaf with hash `leaf` is at `index` in the tree of `size` leaves with this `root` (RFC 9162 2.1.3.2).
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::IndexBeyondTree { index, size });
    }
    let (inner, border) = path_lengths(index, size);
    expect_length(inner + border, proof.len())?;
    let (inside, along_the_border) = proof.split_at(inner);
    let subtree = climb(*leaf, inside, index);
    if climb_border(subtree, along_the_border) != *root {
        return Err(ProofError::RootMismatch);
    }
    Ok(())
}

/// Checks that the tree of `old_size` leaves is the beginning of the one of `new_size` (RFC 9162 2.1.4.2).
///
/// Refuses `old_size` 0, whatever the proof: there is nothing to be consistent with.
pub fn verify_consistency(
    old_size: u64,
    new_size: u64,
    proof: &[Hash],
    old_root: &Hash,
    new_root: &Hash,
) -> Result<(), ProofError> {
    if new_size < old_size {
        return Err(ProofError::Shrunk {
            old: old_size,
            new: new_size,
        });
    }
    if old_size == 0 {
        return Err(ProofError::FromEmptyTree);
    }
    if old_size == new_size {
        expect_length(0, proof.len())?;
        return if old_root == new_root {
            Ok(())
        } else {
            Err(ProofError::RootMismatch)
        };
    }
    let path = ConsistencyPath::of(old_size, new_size, proof)?;
    if path.old_root(old_root) != *old_root {
        return Err(ProofError::OldRootMismatch);
    }
    if path.new_root(old_root) != *new_root {
        return Err(ProofError::RootMismatch);
    }
    Ok(())
}

/// The root over the first `old_size` leaves that a consistency proof states by itself; nothing is verified by that.
///
/// `None` for a proof of another length than the sizes demand, and where the proof leaves the old root out: for equal
/// sizes and for powers of two.
pub fn stated_old_root(old_size: u64, new_size: u64, proof: &[Hash]) -> Option<Hash> {
    if old_size == 0 || old_size >= new_size {
        return None;
    }
    let path = ConsistencyPath::of(old_size, new_size, proof).ok()?;
    path.start.map(|start| path.old_root(start))
}

/// A consistency proof, taken apart.
///
/// It starts at the largest complete subtree that ends where the old tree ends. Where that subtree is the whole old
/// tree, its hash is the old root and is left out of the proof.
struct ConsistencyPath<'a> {
    start: Option<&'a Hash>,
    inside: &'a [Hash],
    along_the_border: &'a [Hash],
    index: u64,
}

impl<'a> ConsistencyPath<'a> {
    /// The sizes are neither 0 nor equal, and the old one is the smaller.
    fn of(old_size: u64, new_size: u64, proof: &'a [Hash]) -> Result<Self, ProofError> {
        let shift = old_size.trailing_zeros();
        let (inner, border) = path_lengths(old_size - 1, new_size);
        let inner = inner - shift as usize;
        let is_whole = old_size == 1 << shift;
        expect_length(inner + border + usize::from(!is_whole), proof.len())?;
        let (start, path) = match proof.split_first() {
            Some((first, rest)) if !is_whole => (Some(first), rest),
            _ => (None, proof),
        };
        let (inside, along_the_border) = path.split_at(inner);
        Ok(Self {
            start,
            inside,
            along_the_border,
            index: (old_size - 1) >> shift,
        })
    }

    fn old_root(&self, whole: &Hash) -> Hash {
        let start = *self.start.unwrap_or(whole);
        climb_border(climb_right(start, self.inside, self.index), self.along_the_border)
    }

    fn new_root(&self, whole: &Hash) -> Hash {
        let start = *self.start.unwrap_or(whole);
        climb_border(climb(start, self.inside, self.index), self.along_the_border)
    }
}

/// The lengths of a leaf's path: below the point where it meets the tree's right border, and along that border.
fn path_lengths(index: u64, size: u64) -> (usize, usize) {
    let inner = 64 - (index ^ (size - 1)).leading_zeros();
    let border = index.checked_shr(inner).unwrap_or(0).count_ones();
    (inner as usize, border as usize)
}

fn expect_length(wanted: usize, found: usize) -> Result<(), ProofError> {
    if wanted == found {
        Ok(())
    } else {
        Err(ProofError::Length { wanted, found })
    }
}

fn climb(mut hash: Hash, siblings: &[Hash], index: u64) -> Hash {
    for (level, sibling) in siblings.iter().enumerate() {
        let is_right = index >> level & 1 == 1;
        hash = if is_right {
            node_hash(sibling, &hash)
        } else {
            node_hash(&hash, sibling)
        };
    }
    hash
}

/// Climbs in the old tree, which has nothing to the right of the path.
fn climb_right(mut hash: Hash, siblings: &[Hash], index: u64) -> Hash {
    for (level, sibling) in siblings.iter().enumerate() {
        if index >> level & 1 == 1 {
            hash = node_hash(sibling, &hash);
        }
    }
    hash
}

fn climb_border(mut hash: Hash, siblings: &[Hash]) -> Hash {
    for sibling in siblings {
        hash = node_hash(sibling, &hash);
    }
    hash
}

/// Something that knows the nodes of a tree.
pub trait NodeSource {
    /// Why a node could not be had.
    type Error;

    /// The root of the complete subtree over the leaves `index << level .. (index + 1) << level`.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// The root of the tree over the first `size` leaves of `source`.
pub fn root<S: NodeSource + ?Sized>(source: &S, size: u64) -> Result<Hash, S::Error> {
    if size == 0 {
        Ok(EMPTY_ROOT)
    } else {
        range_root(source, 0, size)
    }
}

/// The path from leaf `index` to the root of the first `size` leaves; empty if the leaf is not among them.
pub fn inclusion_proof<S: NodeSource + ?Sized>(
    source: &S,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, S::Error> {
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, size);
    while index < end && end - start > 1 {
        let middle = start + largest_power_below(end - start);
        if index < middle {
            proof.push(range_root(source, middle, end)?);
            end = middle;
        } else {
            proof.push(range_root(source, start, middle)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the first `old` leaves are the beginning of the first `new`; empty if `old` is 0 or not below `new`.
pub fn consistency_proof<S: NodeSource + ?Sized>(
    source: &S,
    old: u64,
    new: u64,
) -> Result<Vec<Hash>, S::Error> {
    let mut proof = Vec::new();
    if old == 0 || old >= new {
        return Ok(proof);
    }
    let (mut start, mut end) = (0, new);
    while old != end {
        let middle = start + largest_power_below(end - start);
        if old <= middle {
            proof.push(range_root(source, middle, end)?);
            end = middle;
        } else {
            proof.push(range_root(source, start, middle)?);
            start = middle;
        }
    }
    if start != 0 {
        proof.push(range_root(source, start, end)?);
    }
    proof.reverse();
    Ok(proof)
}

/// The root over the leaves `start..end`, a range that halving the tree leads to: so `start` is a multiple of every
/// power of two in its length.
fn range_root<S: NodeSource + ?Sized>(source: &S, mut start: u64, end: u64) -> Result<Hash, S::Error> {
    let mut complete = Vec::new();
    while start < end {
        let level = (end - start).ilog2();
        complete.push(source.node(level as u8, start >> level)?);
        start += 1 << level;
    }
    let right_to_left = complete.iter().rev().copied();
    Ok(right_to_left
        .reduce(|right, left| node_hash(&left, &right))
        .unwrap_or(EMPTY_ROOT))
}

/// The largest power of two smaller than `length`, which is at least 2.
fn largest_power_below(length: u64) -> u64 {
    1 << (length - 1).ilog2()
}

/// A whole tree in memory: 64 bytes a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTree {
    /// The complete nodes, leaves first.
    levels: Vec<Vec<Hash>>,
}

/// A node that the tree does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tree has no node {index} at level {level}")]
pub struct NoNode {
    /// Height above the leaves.
    pub level: u8,
    /// Position from the left.
    pub index: u64,
}

impl MemoryTree {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// Adds a leaf by its hash; amortised constant time.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        let mut level = 0;
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let nodes = &mut self.levels[level];
            nodes.push(hash);
            let count = nodes.len();
            if count % 2 == 1 {
                return;
            }
            hash = node_hash(&nodes[count - 2], &hash);
            level += 1;
        }
    }

    /// The hash of leaf `index`.
    pub fn leaf(&self, index: u64) -> Option<&Hash> {
        self.levels.first()?.get(usize::try_from(index).ok()?)
    }

    /// The complete nodes of one level, from the left.
    pub fn level(&self, level: u8) -> &[Hash] {
        self.levels.get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    /// The root over all leaves.
    pub fn root(&self) -> Hash {
        // Every node that `root` asks for up to the own size was pushed.
        root(self, self.size()).unwrap_or(EMPTY_ROOT)
    }
}

impl NodeSource for MemoryTree {
    type Error = NoNode;

    fn node(&self, level: u8, index: u64) -> Result<Hash, NoNode> {
        let position = usize::try_from(index).map_err(|_| NoNode { level, index })?;
        self.level(level)
            .get(position)
            .copied()
            .ok_or(NoNode { level, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(size: u64) -> MemoryTree {
        let mut tree = MemoryTree::new();
        for index in 0..size {
            tree.push(leaf_hash(&index.to_be_bytes()));
        }
        tree
    }

    /// The definition of RFC 6962 2.1, word for word.
    fn defined_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => EMPTY_ROOT,
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(largest_power_below(leaves.len() as u64) as usize);
                node_hash(&defined_root(left), &defined_root(right))
            }
        }
    }

    #[test]
    fn a_root_is_the_one_that_rfc_6962_defines() {
        let tree = tree(70);
        for size in 0..=70 {
            let wanted = defined_root(&tree.level(0)[..size]);
            assert_eq!(root(&tree, size as u64), Ok(wanted), "size {size}");
        }
        assert_eq!(tree.root(), defined_root(tree.level(0)));
        assert_eq!(root(&tree, 71), Err(NoNode { level: 0, index: 70 }));
    }

    #[test]
    fn every_leaf_of_every_size_has_a_proof_and_no_other_leaf_fits_it() {
        let tree = tree(40);
        for size in 1..=40 {
            let root = root(&tree, size).unwrap();
            for index in 0..size {
                let proof = inclusion_proof(&tree, index, size).unwrap();
                let leaf = tree.leaf(index).unwrap();
                assert_eq!(
                    verify_inclusion(leaf, index, size, &proof, &root),
                    Ok(()),
                    "{index} of {size}"
                );
                let other = leaf_hash(b"other");
                let wrong_leaf = verify_inclusion(&other, index, size, &proof, &root);
                assert_eq!(wrong_leaf, Err(ProofError::RootMismatch), "{index} of {size}");
                let mut longer = proof.clone();
                longer.push(root);
                let wanted = Err(ProofError::Length {
                    wanted: proof.len(),
                    found: longer.len(),
                });
                assert_eq!(
                    verify_inclusion(leaf, index, size, &longer, &root),
                    wanted,
                    "{index} of {size}"
                );
                for place in 0..proof.len() {
                    let mut bent = proof.clone();
                    bent[place][31] ^= 1;
                    let found = verify_inclusion(leaf, index, size, &bent, &root);
                    assert_eq!(
                        found,
                        Err(ProofError::RootMismatch),
                        "{index} of {size}, hash {place}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_size_grows_into_every_larger_one_and_into_nothing_else() {
        let tree = tree(40);
        for new in 1..=40 {
            for old in 1..=new {
                let (old_root, new_root) = (root(&tree, old).unwrap(), root(&tree, new).unwrap());
                let proof = consistency_proof(&tree, old, new).unwrap();
                let verify = |proof: &[Hash], old_root: &Hash, new_root: &Hash| {
                    verify_consistency(old, new, proof, old_root, new_root)
                };
                assert_eq!(verify(&proof, &old_root, &new_root), Ok(()), "{old} to {new}");
                let bent_new = verify(&proof, &old_root, &EMPTY_ROOT);
                assert_eq!(bent_new, Err(ProofError::RootMismatch), "{old} to {new}");
                for place in 0..proof.len() {
                    let mut bent = proof.clone();
                    bent[place][0] ^= 0x80;
                    let found = verify(&bent, &old_root, &new_root).map_err(|error| error.reason());
                    assert!(
                        matches!(found, Err("OLD_ROOT_MISMATCH" | "ROOT_MISMATCH")),
                        "{old} to {new}, hash {place}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn impossible_sizes_are_refused_by_name() {
        let hash = leaf_hash(b"");
        for (case, found, wanted) in [
            (
                "no leaf",
                verify_inclusion(&hash, 0, 0, &[], &hash),
                "INDEX_BEYOND_TREE",
            ),
            (
                "behind the end",
                verify_inclusion(&hash, 5, 5, &[], &hash),
                "INDEX_BEYOND_TREE",
            ),
            (
                "largest index",
                verify_inclusion(&hash, u64::MAX, u64::MAX, &[], &hash),
                "INDEX_BEYOND_TREE",
            ),
            (
                "largest tree",
                verify_inclusion(&hash, 0, u64::MAX, &[], &hash),
                "PROOF_LENGTH",
            ),
            (
                "its last leaf",
                verify_inclusion(&hash, u64::MAX - 1, u64::MAX, &[], &hash),
                "PROOF_LENGTH",
            ),
            (
                "shrunk",
                verify_consistency(2, 1, &[], &hash, &hash),
                "TREE_SHRUNK",
            ),
            (
                "from nothing",
                verify_consistency(0, 1, &[], &EMPTY_ROOT, &hash),
                "PROOF_FROM_EMPTY_TREE",
            ),
            (
                "nothing to nothing",
                verify_consistency(0, 0, &[], &hash, &hash),
                "PROOF_FROM_EMPTY_TREE",
            ),
            (
                "same size, other root",
                verify_consistency(1, 1, &[], &hash, &EMPTY_ROOT),
                "ROOT_MISMATCH",
            ),
            (
                "same size, a proof",
                verify_consistency(1, 1, &[hash], &hash, &hash),
                "PROOF_LENGTH",
            ),
            (
                "largest growth",
                verify_consistency(1 << 63, u64::MAX, &[], &hash, &hash),
                "PROOF_LENGTH",
            ),
        ] {
            assert_eq!(found.map_err(|error| error.reason()), Err(wanted), "{case}");
        }
    }

    #[test]
    fn proofs_that_cannot_be_made_are_empty() {
        let tree = tree(3);
        assert_eq!(inclusion_proof(&tree, 3, 3), Ok(vec![]));
        assert_eq!(consistency_proof(&tree, 0, 3), Ok(vec![]));
        assert_eq!(consistency_proof(&tree, 3, 3), Ok(vec![]));
        assert_eq!(consistency_proof(&tree, 4, 3), Ok(vec![]));
    }
}
