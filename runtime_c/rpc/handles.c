#include "handles.h"

#include <stdlib.h>
#include <string.h>

rpc_entry *ellm_rpc_handle_add(rpc_handles *handles, rpc_kind kind, uint64_t *handle) {
    if (handles->first_unused == 0) {
        if (handles->n == handles->cap) {
            uint32_t cap = handles->cap == 0 ? 64 : 2 * handles->cap;
            rpc_entry *entries = cap > RPC_HANDLES ? NULL : realloc(handles->entries, cap * sizeof *entries);
            if (entries == NULL) {
                return NULL;
            }
            handles->entries = entries;
            handles->cap = cap;
        }
        memset(&handles->entries[handles->n], 0, sizeof *handles->entries);
        handles->first_unused = ++handles->n;
    }
    uint32_t slot = handles->first_unused;
    rpc_entry *entry = &handles->entries[slot - 1];
    handles->first_unused = entry->next_unused;
    uint32_t generation = entry->generation + 1;
    memset(entry, 0, sizeof *entry);
    entry->kind = kind;
    entry->generation = generation;
    *handle = (uint64_t)generation << 32 | slot;
    return entry;
}

rpc_entry *ellm_rpc_handle_find(const rpc_handles *handles, uint64_t handle) {
    uint32_t slot = (uint32_t)handle;
    if (slot == 0 || slot > handles->n) {
        return NULL;
    }
    rpc_entry *entry = &handles->entries[slot - 1];
    return entry->kind != RPC_UNUSED && entry->generation == handle >> 32 ? entry : NULL;
}

void ellm_rpc_handle_free(rpc_handles *handles, rpc_entry *entry, void (*close)(void *library)) {
    if (entry->kind == RPC_IS_MEMORY) {
        handles->memory_bytes -= entry->n_bytes;
        free(entry->memory);
    }
    if (entry->module != NULL && --entry->module->n_users == 0) {
        close(entry->module->library);
        free(entry->module);
    }
    entry->kind = RPC_UNUSED;
    entry->next_unused = handles->first_unused;
    handles->first_unused = (uint32_t)(entry - handles->entries) + 1;
}

void ellm_rpc_handles_free(rpc_handles *handles, void (*close)(void *library)) {
    for (uint32_t i = 0; i < handles->n; i++) {
        if (handles->entries[i].kind != RPC_UNUSED) {
            ellm_rpc_handle_free(handles, &handles->entries[i], close);
        }
    }
    free(handles->entries);
    memset(handles, 0, sizeof *handles);
}
