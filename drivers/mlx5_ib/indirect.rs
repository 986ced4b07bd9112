// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Keys that refer to keys: memory windows, and those of DEVX and mlx5dv.

use core::marker::PhantomData;
use core::ptr::NonNull;

use firmware_cmds::{
    mkey::{
        QueryMkeyIn,
        QueryMkeyOut, //
    },
    Klm,
    Mkey,
    Wire, //
};
use kernel::prelude::*;
use mlx5_odp::NoQuery;

use crate::{
    bindings,
    device::Device, //
};

/// Most entries that are looked at; a user says how many there are. As many as an implicit MR has.
const MOST_ENTRIES: u32 = 1 << 17;

/// What QUERY_MKEY returned.
pub(crate) struct Query(KVVec<u8>);

impl AsRef<[u8]> for Query {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A key that the fault path holds: its index is nobody else's.
///
/// # Invariants
///
/// The value owns a reference on `key`, and `dev`, whose it is, lives for `'a`.
pub(crate) struct IndirectKey<'a> {
    key: NonNull<bindings::mlx5_ib_mkey>,
    dev: NonNull<bindings::mlx5_ib_dev>,
    mkey: Mkey,
    entries: u32,
    _device: PhantomData<&'a Device>,
}

impl IndirectKey<'_> {
    /// # Safety
    ///
    /// `dev` is live, and the value does not outlive it.
    pub(crate) unsafe fn find(dev: NonNull<bindings::mlx5_ib_dev>, mkey: Mkey) -> Option<Self> {
        let mut entries = 0;
        // SAFETY: `dev` is live. The call takes a reference.
        let key =
            unsafe { bindings::mlx5r_odp_get_indirect(dev.as_ptr(), mkey.get(), &mut entries) };
        // INVARIANT: As just said.
        Some(Self {
            key: NonNull::new(key)?,
            dev,
            mkey,
            entries,
            _device: PhantomData,
        })
    }

    /// QUERY_MKEY.
    ///
    /// # Errors
    ///
    /// [`NoQuery::Memory`], [`NoQuery::Failed`].
    pub(crate) fn query(&self) -> Result<Query, NoQuery> {
        if self.entries > MOST_ENTRIES {
            return Err(NoQuery::Failed);
        }
        // CAST: widens.
        let len = QueryMkeyOut::LEN + self.entries as usize * Klm::LEN;
        let mut output = KVVec::from_elem(0u8, len, GFP_KERNEL).map_err(|_| NoQuery::Memory)?;
        let query = QueryMkeyIn {
            mkey_index: self.mkey.index(),
            ..QueryMkeyIn::default()
        };
        let mut input = [0; QueryMkeyIn::LEN];
        query.emit(&mut input).map_err(|_| NoQuery::Failed)?;
        // CAST: The one is 16, the other little more than 2 MiB.
        let (input_len, output_len) = (input.len() as c_int, len as c_int);
        // SAFETY: By the type invariants, and both buffers are as long as is said.
        let status = unsafe {
            bindings::mlx5_cmd_exec(
                bindings::mlx5r_odp_mdev(self.dev.as_ptr()),
                input.as_mut_ptr().cast(),
                input_len,
                output.as_mut_ptr().cast(),
                output_len,
            )
        };
        kernel::error::to_result(status).map_err(|error| match error {
            e if e == ENOMEM => NoQuery::Memory,
            _ => NoQuery::Failed,
        })?;
        Ok(Query(output))
    }
}

impl Drop for IndirectKey<'_> {
    fn drop(&mut self) {
        // SAFETY: The value owns the reference.
        unsafe { bindings::mlx5r_odp_put_indirect(self.key.as_ptr()) };
    }
}
