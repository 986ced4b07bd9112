// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme through keys that refer to keys: memory windows, and the keys of DEVX and
//! mlx5dv. Its event names the first of them; which memory is missing is found by asking the device
//! what each refers to.

use firmware_cmds::mkey::QueryMkeyOut;
use firmware_cmds::{Error, Piece, Pieces, Wire};

use super::demand_of_piece;
use crate::bring_in::{Asked, NotIn};
use crate::driver::{Driver, NoQuery, Report, Unsupported};
use crate::region::Pressure;

/// At most so many keys that refer to keys are on the way to memory, whatever the device allows.
const LEVELS: usize = 8;

/// At most so many pieces are looked at for one access: more than the longest list has entries. A
/// strided block is short and may cut a message into any number.
const PIECES: u32 = 1 << 17;

/// As [`super::demand_of_key`], of a piece whose key refers to keys.
pub(super) fn demand<D: Driver>(driver: &D, piece: &Piece, asked: Asked) -> Result<bool, NotIn> {
    let mut path = Path::new(driver);
    let mut asked_again = true;
    path.enter(piece)?;
    for _ in 0..PIECES {
        let Some(piece) = path.next()? else {
            return Ok(asked_again);
        };
        match demand_of_piece(driver, &piece, asked)? {
            Some(all) => asked_again &= all,
            None => path.enter(&piece)?,
        }
    }
    driver.report(Report::Unsupported(Unsupported::Pieces));
    Err(NotIn::Invalid)
}

/// The keys between the one that was accessed and the one whose piece is next.
struct Path<'a, D: Driver> {
    driver: &'a D,
    levels: [Option<Level<D::Query>>; LEVELS],
    /// How many levels there are, from the first on.
    depth: usize,
}

/// A key, and what the access takes of it.
struct Level<Q> {
    query: Q,
    pieces: Pieces,
}

impl<'a, D: Driver> Path<'a, D> {
    fn new(driver: &'a D) -> Self {
        Self {
            driver,
            levels: [const { None }; LEVELS],
            depth: 0,
        }
    }

    /// Asks for what a piece comes to, before anything else.
    fn enter(&mut self, piece: &Piece) -> Result<(), NotIn> {
        let most = usize::from(self.driver.max_indirection());
        let level = self.levels.iter_mut().take(most).nth(self.depth);
        let level = level.ok_or(NotIn::Invalid)?;
        let query = match self.driver.query(piece.key) {
            Ok(query) => query,
            // As a key without a region: the device finds out.
            Err(NoQuery::Gone) => return Ok(()),
            Err(NoQuery::Memory) => return Err(NotIn::Busy(Pressure::Memory)),
            Err(NoQuery::Failed) => return Err(NotIn::Device),
        };
        let key = QueryMkeyOut::parse(query.as_ref()).map_err(|e| malformed(self.driver, e))?;
        let pieces = Pieces::new(&key.mkc, piece.at, piece.bytes).ok_or(NotIn::Invalid)?;
        *level = Some(Level { query, pieces });
        self.depth += 1;
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Piece>, NotIn> {
        while let Some(last) = self.depth.checked_sub(1) {
            if let Some(level) = &mut self.levels[last] {
                let list = level.query.as_ref().get(QueryMkeyOut::LEN..);
                let piece = level.pieces.next(list.unwrap_or_default());
                let piece = piece.map_err(|e| malformed(self.driver, e))?;
                if piece.is_some() {
                    return Ok(piece);
                }
            }
            self.levels[last] = None;
            self.depth = last;
        }
        Ok(None)
    }
}

fn malformed<D: Driver>(driver: &D, error: Error) -> NotIn {
    driver.report(Report::Key(error));
    NotIn::Invalid
}
