// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#include "counted.h"

void counted_now(const char *dev, struct counted *c)
{
	mr_statistics(dev, &c->ms);
	device_counters(dev, &c->dc);
}

void report_counted(struct report *r, const struct counted *before,
		    const struct counted *after, uint64_t min_faults)
{
	uint64_t faults = 0;

	if (after->ms.valid) {
		const struct mr_statistics *a = &before->ms, *b = &after->ms;

		faults = b->page_faults_handled - a->page_faults_handled;
		report_u64(r, "page_faults", b->page_faults - a->page_faults);
		report_u64(r, "page_faults_handled", faults);
		report_u64(r, "page_prefetch", b->page_prefetch - a->page_prefetch);
		report_u64(r, "page_invalidations",
			   b->page_invalidations - a->page_invalidations);
		report_u64(r, "page_invalidations_handled",
			   b->page_invalidations_handled - a->page_invalidations_handled);
	}
	if (after->dc.valid) {
		const struct device_counters *a = &before->dc, *b = &after->dc;

		faults = b->faults - a->faults;
		report_u64(r, "device_resumes_ok", b->resumes_ok - a->resumes_ok);
		report_u64(r, "device_resumes_error", b->resumes_error - a->resumes_error);
		report_u64(r, "device_umr_wqes", b->umr_wqes - a->umr_wqes);
		report_u64(r, "device_mtts_set", b->mtts_set - a->mtts_set);
		report_u64(r, "device_mtts_cleared", b->mtts_cleared - a->mtts_cleared);
		if (b->violations != a->violations)
			report_fail(r, "the device saw %llu protocol violations",
				    (unsigned long long)(b->violations - a->violations));
	}
	if (!after->ms.valid && !after->dc.valid) {
		report_null(r, "faults");
		return;
	}
	report_u64(r, "faults", faults);
	if (faults < min_faults)
		report_fail(r, "%llu faults, at least %llu were expected",
			    (unsigned long long)faults, (unsigned long long)min_faults);
}
