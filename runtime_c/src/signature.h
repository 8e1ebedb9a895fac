/* signature.h: Ed25519 signatures (RFC 8032) over manifest.json, by keys that a board has pinned (FORMAT.md). */
#ifndef ELLM_SIGNATURE_H
#define ELLM_SIGNATURE_H

#include "edgellm.h"

/* Whether a signature in manifest.sig is by a pinned key and of this manifest.
 *
 *   signatures  what manifest.sig holds; n_signatures 0: there is none
 *   pinned      what the file of pinned keys holds
 *
 * SIGNATURE_MISSING, SIGNATURE_INVALID or SIGNATURE_UNTRUSTED; KEY_INVALID where the pinned keys are no such file: one
 * that is damaged shuts the door, it does not open it. */
ellm_status ellm_signature_check(const char *signatures, size_t n_signatures, const char *pinned, size_t n_pinned,
                                 const void *manifest, size_t manifest_bytes, ellm_error *error);

#endif
