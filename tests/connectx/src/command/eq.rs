// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands on event queues.

use firmware_cmds::{Eqe, Eqn, EventType, Uar, Wire};

use super::{put_word, word, CmdError, CmdResult, CmdStatus, Command};
use crate::buffer::QueueBuffer;
use crate::device::Device;
use crate::event::EventQueue;
use crate::guest::to_u64;
use crate::ifc::eqc;
use crate::pci::VECTORS;

const CONTEXT: usize = 0x10;
const EVENT_BITMASK: usize = 0x58;
const PAS: usize = 0x110;
/// Entries, as a power of two (`log_max_eq_sz`).
const MAX_LOG_SIZE: u32 = 22;

fn create_eq(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let context = &input[CONTEXT..CONTEXT + 0x40];
    let log_size = eqc::LOG_EQ_SIZE.get32(context);
    let uar = Uar::truncate(eqc::UAR_PAGE.get32(context));
    if log_size > MAX_LOG_SIZE || !dev.uars.pages.contains(&uar) {
        return Err(CmdStatus::BadParam.into());
    }
    let vector = u16::try_from(eqc::INTR.get(context))
        .ok()
        .filter(|&vector| vector < VECTORS)
        .ok_or_else(|| {
            dev.journal
                .note(format_args!("CREATE_EQ for a vector that does not exist"));
            CmdStatus::BadParam
        })?;
    let buffer = QueueBuffer::new(
        &input[PAS..],
        eqc::LOG_PAGE_SIZE.get(context),
        eqc::PAGE_OFFSET.get(context),
        to_u64(Eqe::LEN) << log_size,
    )?;
    let mut mask = [0; 4];
    for (word64, bytes) in mask.iter_mut().zip(input[EVENT_BITMASK..].chunks_exact(8)) {
        *word64 = u64::from(word(bytes, 0)) << 32 | u64::from(word(bytes, 4));
    }
    let queue = EventQueue::new(log_size, uar, vector, mask, buffer);
    let taken = |event_type| queue.takes(event_type) && dev.events.queue_for(event_type).is_some();
    // Completions go to the queue that their CQ names.
    if (1..=u8::MAX).any(|event_type| taken(EventType(event_type))) {
        return Err(CmdStatus::ResBusy.into());
    }
    let queues = &dev.events.queues;
    let eqn = dev
        .events
        .numbers
        .take(|n| u8::try_from(n).is_ok_and(|n| queues.contains_key(&Eqn::new(n))))
        .and_then(|n| u8::try_from(n).ok())
        .ok_or(CmdStatus::NoRes)?;
    dev.events.queues.insert(Eqn::new(eqn), queue);
    put_word(output, 8, u32::from(eqn));
    Ok(())
}

fn eqn(dev: &Device, input: &[u8]) -> Result<Eqn, CmdError> {
    let [_, _, _, eqn] = word(input, 8).to_be_bytes();
    if dev.events.queues.contains_key(&Eqn::new(eqn)) {
        Ok(Eqn::new(eqn))
    } else {
        Err(CmdStatus::BadRes.into())
    }
}

fn destroy_eq(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let eqn = eqn(dev, input)?;
    if dev.cqs.queues.values().any(|cq| cq.eqn == eqn) {
        dev.journal.note(format_args!("EQ {eqn} still has CQs"));
        return Err(CmdStatus::ResBusy.into());
    }
    dev.report_all();
    dev.events.queues.remove(&eqn);
    Ok(())
}

fn query_eq(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let eqn = eqn(dev, input)?;
    let Some(eq) = dev.events.queues.get(&eqn) else {
        return Err(CmdStatus::BadRes.into());
    };
    let context = &mut output[CONTEXT..CONTEXT + 0x40];
    /// `st`: fired or armed.
    const FIRED: u64 = 0xa;
    const ARMED: u64 = 0x9;
    eqc::ST.set(context, if eq.armed() { ARMED } else { FIRED });
    eqc::LOG_EQ_SIZE.set(context, u64::from(eq.log_size));
    eqc::UAR_PAGE.set(context, u64::from(eq.uar.get()));
    eqc::INTR.set(context, u64::from(eq.vector));
    eqc::CONSUMER_COUNTER.set(context, u64::from(eq.consumer()));
    eqc::PRODUCER_COUNTER.set(context, u64::from(eq.producer()));
    Ok(())
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0x301, "CREATE_EQ", PAS, 16, create_eq),
    Command::new(0x302, "DESTROY_EQ", 16, 16, destroy_eq),
    Command::new(0x303, "QUERY_EQ", 16, PAS, query_eq),
];
