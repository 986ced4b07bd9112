// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Rules as text and as JSON: what is taken, what is refused and why.

use connectx::rules::points::{
    Command, CommandAct, Completion, EntryAct, Event, Fault, FaultAct, FaultKind, Message, Side,
    Umr, UmrKind, WqeAct,
};
use connectx::rules::words::{Corrupt, Delay, Hold, Named, Names, Number};
use connectx::rules::{At, When};
use connectx::{Rule, Rules};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

/// The text says what the text of the rule that was read says.
#[test]
fn text_and_back() {
    for text in [
        "umr every=64 do=delay ms=25",
        "umr kind=map do=hold stalls=16",
        "umr kind=zap mkey=0xa15c do=complete",
        "command op=DESTROY_MKEY times=1 do=fail status=BAD_RES_STATE",
        "command object=0x41 op=0x999 do=drop",
        "command op=QUERY_ISSI do=corrupt field=query_issi_out.current_issi xor=0x1",
        "completion qp=0x41 syndrome=FLUSH do=drop",
        "completion cq=0x80 op=REQ_ERR do=corrupt bit=440 width=8 xor=0xff",
        "event object=0x41 sub_type=0x2 type=PAGE_FAULT after=3 do=duplicate",
        "message op=RDMA_WRITE qp=0x41 do=fail syndrome=RNR_EXCEEDED",
        "fault kind=shared_receive side=responder do=fail",
        "fault side=responder times=1 do=shape reply=rnr",
        "fault do=shape last=first pieces=2 post=65535 pre=4",
        "fault kind=rdma do=shape committed=packets",
        "command do=delay us=7",
        "command do=delay us=0",
    ] {
        let rule: Rule = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(rule.to_string(), text);
    }
}

#[test]
fn words_in_any_order_and_numbers_in_any_form() {
    let same = |a: &str, b: &str| {
        assert_eq!(
            a.parse::<Rule>().unwrap(),
            b.parse::<Rule>().unwrap(),
            "{a}"
        );
    };
    same(
        "  umr  do=delay ms=25 every=64 ",
        "umr every=0x40 do=delay ms=25",
    );
    same(
        "command op=0x202 do=drop",
        "command do=drop op=DESTROY_MKEY",
    );
    same("command op=514 do=drop", "command do=drop op=DESTROY_MKEY");
    same("completion qp=65 do=drop", "completion qp=0x41 do=drop");
    same("event do=delay ms=1 us=1500", "event do=delay ms=2 us=500");
    same(
        "command do=corrupt bit=3",
        "command do=corrupt bit=3 width=1 xor=1",
    );
}

/// The message names what is wrong and, where that is a name, what there is.
#[test]
fn what_is_refused() {
    for (text, message) in [
        ("", "a rule starts with its point"),
        ("umrs do=drop", r#"there is no point "umrs"; the points are command, umr, message"#),
        ("umr", "umr: missing field `do`"),
        ("umr do=drop drop", r#""drop" is not key=value"#),
        ("umr do=drop do=drop", r#""do" is there twice"#),
        // An action that the point cannot do, and what it can.
        ("umr do=duplicate", "unknown variant `duplicate`, expected one of `delay`, `drop`, `fail`, `complete`, `hold`"),
        ("event do=fail", "expected one of `delay`, `drop`, `duplicate`, `corrupt`, `hold`"),
        ("fault do=drop", "unknown variant `drop`, expected `fail` or `shape`"),
        ("fault do=shape", "at least one word that is not as usual"),
        ("fault do=shape pieces=0", "expected a nonzero"),
        ("fault do=shape reply=ack", "expected one of `nothing`, `rnr`, `rnr_each_faults`"),
        ("fault side=requester do=shape reply=rnr", "a requester replies to nobody"),
        // Keys of another point, of another action, or of none.
        ("umr op=UMR do=drop", "unknown field `op`"),
        ("umr do=drop ms=3", "unknown field `ms`"),
        ("event do=delay ms=3 stalls=2", "unknown field `stalls`"),
        ("command do=drop evry=2", "unknown field `evry`"),
        ("message point=umr do=drop", "unknown field `point`"),
        // Values.
        ("umr every=0 do=drop", "expected a nonzero u64"),
        ("umr times=many do=drop", r#"invalid type: string "many", expected u64"#),
        ("umr kind=all do=drop", "unknown variant `all`, expected one of `enable`, `revoke`, `zap`"),
        ("command op=DESTROY do=drop", r#"there is no command "DESTROY"; there are"#),
        ("command op=0x10000 do=drop", "0x10000 is too large for a command"),
        ("command do=fail status=OK", r#"there is no command status "OK"; there are INTERNAL_ERROR"#),
        ("completion syndrome=0x100 do=drop", "0x100 is too large for a CQE syndrome"),
        ("event type=FAULT do=drop", r#"there is no event type "FAULT"; there are COMP, SQ_DRAINED"#),
        ("umr do=delay", "a delay needs `ms` or `us`"),
        ("umr do=hold stalls=0", "expected a nonzero"),
        ("event do=corrupt", "either `field` or `bit`"),
        ("event do=corrupt bit=1 width=65", "1 to 64 bits"),
        ("event do=corrupt bit=1 width=4 xor=0x10", "not a change of 4 bits"),
        ("event do=corrupt bit=1 xor=0", "not a change of 1 bits"),
        ("event do=corrupt bit=505 width=8", "an entry has 512 bits"),
        ("event do=corrupt field=eqc.st", "the fields of entries have no names"),
        ("command do=corrupt field=query_issi_out.nothing", r#"no field "query_issi_out.nothing""#),
        ("command do=corrupt field=query_issi_out.current_issi", "needs the command's `op`"),
        ("command op=QUERY_ADAPTER do=corrupt field=query_issi_out.current_issi",
         r#"is no field of this command, query_adapter_out.FIELD is"#),
    ] {
        let mut rules = Rules::default();
        let error = rules.add(text).expect_err(text).to_string();
        assert!(error.contains(message), "{text}: {error}");
        assert!(rules.entries().is_empty());
    }
}

fn named<N: Names>() -> impl Strategy<Value = Named<N>> {
    let names: Vec<u64> = N::names().into_iter().map(|(value, _)| value).collect();
    prop_oneof![proptest::sample::select(names), 0..=N::MAX]
        .prop_map(|value| Named::deserialize(Value::from(value)).expect("a number that fits"))
}

fn number() -> impl Strategy<Value = Option<Number>> {
    proptest::option::of(any::<u64>().prop_map(Number))
}

fn when() -> impl Strategy<Value = When> {
    let every = proptest::option::of((1..u64::MAX).prop_map(|n| n.try_into().unwrap()));
    let number = || proptest::option::of(any::<u64>());
    (every, number(), number()).prop_map(|(every, after, times)| When {
        every,
        after,
        times,
    })
}

fn delay() -> impl Strategy<Value = Delay> {
    // As many microseconds as the words of two numbers of 64 bits can say for sure.
    any::<u64>().prop_map(|us| Delay(std::time::Duration::from_micros(us)))
}

fn hold() -> impl Strategy<Value = Hold> {
    proptest::option::of(1_usize..).prop_map(|stalls| Hold {
        stalls: stalls.map(|n| n.try_into().unwrap()),
    })
}

fn corrupt() -> impl Strategy<Value = Corrupt> {
    (0_usize..448, 1_usize..=64, any::<u64>()).prop_map(|(bit, width, xor)| Corrupt {
        name: None,
        field: connectx::ifc::Field::new(bit, width),
        xor: (xor & u64::MAX >> (64 - width)).max(1),
    })
}

fn wqe_act() -> impl Strategy<Value = WqeAct> {
    prop_oneof![
        delay().prop_map(WqeAct::Delay),
        Just(WqeAct::Drop {}),
        Just(WqeAct::Complete {}),
        proptest::option::of(named()).prop_map(|syndrome| WqeAct::Fail { syndrome }),
        hold().prop_map(WqeAct::Hold),
    ]
}

fn entry_act() -> impl Strategy<Value = EntryAct> {
    prop_oneof![
        delay().prop_map(EntryAct::Delay),
        Just(EntryAct::Drop {}),
        Just(EntryAct::Duplicate {}),
        corrupt().prop_map(EntryAct::Corrupt),
        hold().prop_map(EntryAct::Hold),
    ]
}

fn command_act() -> impl Strategy<Value = CommandAct> {
    let fail = (
        proptest::option::of(named()),
        proptest::option::of(any::<u32>()),
    );
    prop_oneof![
        delay().prop_map(CommandAct::Delay),
        Just(CommandAct::Drop {}),
        Just(CommandAct::Complete {}),
        fail.prop_map(|(status, syndrome)| CommandAct::Fail { status, syndrome }),
        corrupt().prop_map(CommandAct::Corrupt),
        hold().prop_map(CommandAct::Hold),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    use proptest::option::of;
    use UmrKind::{Enable, Map, Modify, Revoke, Zap};

    let kind = proptest::sample::select(vec![Enable, Revoke, Zap, Map, Modify]);
    let fault = proptest::sample::select(vec![
        FaultKind::SendOrWrite,
        FaultKind::ReadOrAtomic,
        FaultKind::Receive,
        FaultKind::SharedReceive,
        FaultKind::Rdma,
    ]);
    let side = proptest::sample::select(vec![Side::Requester, Side::Responder]);
    let command = (of(named()), number()).prop_map(|(op, object)| Command { op, object });
    let umr = (number(), of(kind)).prop_map(|(mkey, kind)| Umr { mkey, kind });
    let message = (of(named()), number()).prop_map(|(op, qp)| Message { op, qp });
    let event = (of(named()), number(), number());
    let event = event.prop_map(|(event_type, sub_type, object)| Event {
        event_type,
        sub_type,
        object,
    });
    let completion = (number(), number(), of(named()), of(named()));
    let completion = completion.prop_map(|(cq, qp, op, syndrome)| Completion {
        cq,
        qp,
        op,
        syndrome,
    });
    let fault = (of(fault), number(), number(), of(side));
    let fault = fault.prop_map(|(kind, qp, mkey, side)| Fault {
        kind,
        qp,
        mkey,
        side,
    });
    macro_rules! at {
        ($point:ident, $what:expr, $act:expr) => {
            ($what, when(), $act).prop_map(|(what, when, act)| Rule::$point(At { what, when, act }))
        };
    }
    prop_oneof![
        at!(Command, command, command_act()),
        at!(Umr, umr, wqe_act()),
        at!(Message, message, wqe_act()),
        at!(Event, event, entry_act()),
        at!(Completion, completion, entry_act()),
        at!(Fault, fault, Just(FaultAct::Fail {})),
    ]
}

proptest! {
    /// Every rule survives its text, and the JSON object of the same words.
    #[test]
    fn every_rule_survives_its_text(rule in rule()) {
        let text = rule.to_string();
        prop_assert_eq!(&text.parse::<Rule>().expect(&text), &rule);
        let mut words = text.split(' ');
        let mut object = serde_json::Map::new();
        object.insert("point".to_owned(), words.next().unwrap().into());
        for word in words {
            let (key, value) = word.split_once('=').unwrap();
            let number = value.parse::<u64>();
            let value = number.map_or_else(|_| value.into(), Value::from);
            object.insert(key.to_owned(), value);
        }
        prop_assert_eq!(Rule::from_words(object).expect(&text), rule);
    }

    /// No text makes the parser panic.
    #[test]
    fn any_text_is_a_rule_or_refused(text in "(command|umr|event|completion)( (op|type|do|ms|bit|xor|width|field|every)=[a-z0-9_.]{0,9}){0,4}") {
        let _ = text.parse::<Rule>();
    }
}
