/* model.h: what the rest of the library may ask of an opened model.
 *
 * model.c implements ellm_model_open/close/get_info, ellm_token_is_stop, ellm_model_has_chat_template and
 * ellm_model_sampler_options; tokenizer*.c and template*.c implement encode, decode, stream and chat_render
 * over the two accessors below. */
#ifndef ELLM_MODEL_H
#define ELLM_MODEL_H

#include "edgellm.h"

typedef struct ellm_file ellm_file;           /* file.h */
typedef struct ellm_state ellm_state;         /* state.h */
typedef struct ellm_tokenizer ellm_tokenizer; /* tokenizer.h */
typedef struct ellm_template ellm_template;   /* template.h */
struct ellm_plan;                             /* plan.h */

/* Never NULL for an opened model. */
const ellm_tokenizer *ellm_model_tokenizer(const ellm_model *model);
/* NULL where the bundle has no chat.bin. */
const ellm_template *ellm_model_template(const ellm_model *model);
/* The validated plan; weights and kernels are resolved to addresses. */
const struct ellm_plan *ellm_model_plan(const ellm_model *model);
/* What a GPU runs: the model's plan, a plan of its first layers, or NULL: nothing. */
const struct ellm_plan *ellm_model_gpu_plan(const ellm_model *model);
#ifdef ELLM_VULKAN
/* The latter's layers, where the processor has the others; NULL: it has none. */
const struct ellm_plan *ellm_model_first_plan(const ellm_model *model);
/* The files of the weights, of which those that a GPU takes weights from stay open. */
const ellm_file *ellm_model_shards(const ellm_model *model, size_t *n);
#endif
/* The state that the bundle ships, and the file it is in; NULL if there is none. */
const ellm_state *ellm_model_prefix(const ellm_model *model, const ellm_file **file);
/* The bundle's directory, a descriptor that stays open, and the SHA-256 of its manifest in hexadecimal. */
int ellm_model_directory(const ellm_model *model);
const char *ellm_model_sha256(const ellm_model *model);
/* 64 digits that say which of the bundle's plans computes (FORMAT.md, kv.bundle): what another one kept is not for it. */
const char *ellm_model_computer(const ellm_model *model);

#endif
