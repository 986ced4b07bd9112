// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The model speaks what the kernel's headers say: fields, numbers, and whole structures.
//!
//! Where a number is private to the model, `driver` finds it out: it knows the headers and
//! nothing else, and looks at what the device makes of what it sends.

#[path = "ifc/driver.rs"]
mod driver;
#[path = "ifc/numbers.rs"]
mod numbers;
#[path = "ifc/qp.rs"]
mod qp_context;
#[path = "ifc/queues.rs"]
mod queues;
#[path = "ifc/status.rs"]
mod status;

use connectx::{ifc, qp};

#[test]
fn fields_lie_where_the_kernel_puts_them() {
    let Some(oracle) = ifc_oracle::require_or_skip("fields_lie_where_the_kernel_puts_them") else {
        return;
    };
    let mut wrong = Vec::new();
    for (name, fields) in ifc::LAYOUTS.iter().chain(qp::context::LAYOUTS) {
        let layout = match oracle.layout(&format!("mlx5_ifc_{name}_bits")) {
            Ok(layout) => layout,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (path, field) in *fields {
            let place = (field.bit as u64, field.width as u64);
            match layout.field(path) {
                None => wrong.push(format!("{name}.{path}: not in the header")),
                Some(real) if (real.offset, real.bits) != place => wrong.push(format!(
                    "{name}.{path}: {place:?} here, {:?} in the header",
                    (real.offset, real.bits)
                )),
                Some(_) => {}
            }
        }
    }
    for (name, field) in ifc::unnamed::ALL {
        let layout = oracle.layout(&format!("mlx5_ifc_{name}_bits")).unwrap();
        let (first, end) = (field.bit as u64, (field.bit + field.width) as u64);
        let taken = layout
            .leaves()
            .filter(|leaf| !leaf.is_reserved() && leaf.bits > 0)
            .find(|leaf| leaf.offset < end && first < leaf.end());
        if let Some(taken) = taken {
            wrong.push(format!(
                "{name} {first:#x}: the header has {} here",
                taken.path
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
