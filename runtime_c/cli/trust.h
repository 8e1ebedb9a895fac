/* trust.h: which keys count. */
#ifndef EDGELLM_RT_TRUST_H
#define EDGELLM_RT_TRUST_H

#include "edgellm.h"

typedef struct trust {
    ellm_trust files; /* what the library takes; points to the paths */
    char pinned[4160], secret[4160];
} trust;

/* The keys that count for what lies below `folder`, as deployments keep it. */
void trust_in(const char *folder, trust *t);
/* Finds `trusted_keys` and `weights.key` beside this program or, where that lies in a slot (ROOT/models/NAME/SLOT), in
 * ROOT. A service's credential weights.key (systemd's LoadCredential) comes before the latter. */
ellm_status trust_find(trust *t, ellm_error *error);

/* A line on standard error where decrypted weights might get to swap. */
void trust_note(const ellm_model_info *info);

#endif
