#include "posix.h"

#include "object.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"

#if defined(__LP64__)
typedef Elf64_Ehdr file_header;
typedef Elf64_Phdr segment;
typedef Elf64_Dyn dynamic;
typedef Elf64_Sym symbol;
#define CLASS             ELFCLASS64
#define SYMBOL_TYPE(info) ELF64_ST_TYPE(info)
#else
typedef Elf32_Ehdr file_header;
typedef Elf32_Phdr segment;
typedef Elf32_Dyn dynamic;
typedef Elf32_Sym symbol;
#define CLASS             ELFCLASS32
#define SYMBOL_TYPE(info) ELF32_ST_TYPE(info)
#endif

#if defined(__aarch64__)
#define MACHINE EM_AARCH64
#elif defined(__arm__)
#define MACHINE EM_ARM
#else
#define MACHINE EM_X86_64
#endif

enum { most_segments = 16, most_symbols = 1 << 20 };
static const uint64_t most_span = (uint64_t)1 << 28; /* bytes of address space */

struct ellm_object_layout {
    const uint8_t *data; /* the file */
    size_t bytes;
    segment loads[most_segments]; /* PT_LOAD, ascending */
    size_t n_loads;
    uint64_t symbols, strings; /* file offsets */
    uint64_t n_symbols, strings_bytes;
};

/* Copies `bytes` at file offset `at`; false if they do not lie in the file. Nothing is read in place: offsets in
 * the file may be misaligned. */
static bool copy(const struct ellm_object_layout *layout, uint64_t at, void *to, size_t bytes) {
    if (at > layout->bytes || bytes > layout->bytes - at) {
        return false;
    }
    memcpy(to, layout->data + at, bytes);
    return true;
}

/* File offset of `bytes` bytes at a virtual address; false if no segment holds them in the file. */
static bool offset_of(const struct ellm_object_layout *layout, uint64_t address, uint64_t bytes, uint64_t *offset) {
    for (size_t i = 0; i < layout->n_loads; i++) {
        const segment *load = &layout->loads[i];
        if (address >= load->p_vaddr && address - load->p_vaddr <= load->p_filesz
            && bytes <= load->p_filesz - (address - load->p_vaddr)) {
            *offset = load->p_offset + (address - load->p_vaddr);
            return true;
        }
    }
    return false;
}

/* Every check below returns NULL, or what is wrong. */

static const char *read_segments(struct ellm_object_layout *layout, const file_header *header,
                                 segment *dynamic_segment) {
    if (header->e_phentsize != sizeof(segment) || header->e_phnum == 0 || header->e_phnum > 64) {
        return "its program headers are malformed";
    }
    uint64_t end = 0;
    int n_writable = 0;
    for (uint64_t i = 0; i < header->e_phnum; i++) {
        segment now;
        if (header->e_phoff > layout->bytes || !copy(layout, header->e_phoff + i * sizeof now, &now, sizeof now)) {
            return "its program headers lie outside the file";
        }
        if (now.p_type == PT_INTERP || now.p_type == PT_TLS) {
            return "it asks for a loader or for thread-local storage";
        }
        if (now.p_type == PT_DYNAMIC) {
            *dynamic_segment = now;
        }
        if (now.p_type != PT_LOAD || now.p_memsz == 0) {
            continue;
        }
        if (layout->n_loads == most_segments) {
            return "it has too many segments";
        }
        if (now.p_offset > layout->bytes || now.p_filesz > layout->bytes - now.p_offset || now.p_filesz > now.p_memsz) {
            return "a segment lies outside the file";
        }
        if (now.p_vaddr < end || now.p_memsz > most_span || (uint64_t)now.p_vaddr > most_span) {
            return "its segments overlap, descend or are too large";
        }
        if ((now.p_flags & PF_W) && (now.p_flags & PF_X)) {
            return "a segment is both writable and executable";
        }
        n_writable += (now.p_flags & PF_W) != 0;
        end = (uint64_t)now.p_vaddr + now.p_memsz;
        layout->loads[layout->n_loads++] = now;
    }
    if (layout->n_loads == 0 || end - layout->loads[0].p_vaddr > most_span) {
        return "it has no segments, or they lie too far apart";
    }
    return n_writable > 1 ? "it has more than one writable segment" : NULL;
}

/* Number of symbols by DT_HASH or DT_GNU_HASH (the latter: the end of the last chain). */
static bool count_symbols(const struct ellm_object_layout *layout, uint64_t hash, uint64_t gnu_hash,
                          uint64_t *n_symbols) {
    uint64_t at;
    uint32_t words[4];
    if (hash != 0) {
        if (!offset_of(layout, hash, 8, &at) || !copy(layout, at, words, 8)) {
            return false;
        }
        *n_symbols = words[1];
        return true;
    }
    if (gnu_hash == 0 || !offset_of(layout, gnu_hash, sizeof words, &at) || !copy(layout, at, words, sizeof words)) {
        return false;
    }
    uint32_t n_buckets = words[0], first = words[1], last = 0, word;
    uint64_t buckets = at + 16 + (uint64_t)words[2] * (sizeof(void *)), chain = buckets + (uint64_t)n_buckets * 4;
    for (uint64_t i = 0; i < n_buckets; i++) {
        if (!copy(layout, buckets + 4 * i, &word, 4)) {
            return false;
        }
        last = word > last ? word : last;
    }
    if (last < first) { /* nothing is exported */
        *n_symbols = first;
        return true;
    }
    do {
        if (!copy(layout, chain + 4 * ((uint64_t)last - first), &word, 4)) {
            return false;
        }
        last++;
    } while (!(word & 1) && last != 0);
    *n_symbols = last;
    return true;
}

static const char *read_dynamic(struct ellm_object_layout *layout, const segment *where) {
    uint64_t symbols = 0, strings = 0, hash = 0, gnu_hash = 0, offset;
    if (where->p_type != PT_DYNAMIC || !offset_of(layout, where->p_vaddr, where->p_filesz, &offset)) {
        return "it has no dynamic section";
    }
    for (uint64_t i = 0; i < where->p_filesz / sizeof(dynamic); i++) {
        dynamic entry;
        if (!copy(layout, offset + i * sizeof entry, &entry, sizeof entry) || entry.d_tag == DT_NULL) {
            break;
        }
        uint64_t value = entry.d_un.d_val;
        switch ((int64_t)entry.d_tag) {
        case DT_SYMTAB: symbols = value; break;
        case DT_STRTAB: strings = value; break;
        case DT_STRSZ: layout->strings_bytes = value; break;
        case DT_HASH: hash = value; break;
        case DT_GNU_HASH: gnu_hash = value; break;
        case DT_SYMENT:
            if (value != sizeof(symbol)) {
                return "its symbols have an unknown size";
            }
            break;
        case DT_NEEDED: return "it needs other libraries";
        case DT_TEXTREL: return "it has text relocations";
        case DT_RELASZ:
        case DT_RELSZ:
        case DT_PLTRELSZ:
        case 35: /* DT_RELRSZ */
            if (value != 0) {
                return "it has relocations";
            }
            break;
        case DT_INIT:
        case DT_FINI:
        case DT_INIT_ARRAYSZ:
        case DT_FINI_ARRAYSZ:
        case DT_PREINIT_ARRAYSZ:
            if (value != 0) {
                return "it has constructors or destructors";
            }
            break;
        default: break;
        }
    }
    if (!offset_of(layout, strings, layout->strings_bytes, &layout->strings) || layout->strings_bytes == 0
        || layout->data[layout->strings + layout->strings_bytes - 1] != '\0') {
        return "its symbol names are malformed";
    }
    if (!count_symbols(layout, hash, gnu_hash, &layout->n_symbols) || layout->n_symbols > most_symbols
        || !offset_of(layout, symbols, layout->n_symbols * sizeof(symbol), &layout->symbols)) {
        return "its symbol table is malformed";
    }
    return NULL;
}

static symbol symbol_at(const struct ellm_object_layout *layout, uint64_t index) {
    symbol result; /* n_symbols of them were checked to lie in the file */
    memcpy(&result, layout->data + layout->symbols + index * sizeof result, sizeof result);
    return result;
}

static const char *check_symbols(const struct ellm_object_layout *layout) {
    for (uint64_t i = 1; i < layout->n_symbols; i++) {
        symbol now = symbol_at(layout, i);
        if (now.st_name >= layout->strings_bytes) {
            return "a symbol has no name";
        }
        if (now.st_shndx == SHN_UNDEF) {
            return "it imports symbols";
        }
    }
    return NULL;
}

/* Maps one segment over its part of the reserved span: from the file if it can be, else as a copy (file systems
 * mounted noexec, zero-filled tails). */
static bool map_segment(const ellm_object *object, const segment *load, const ellm_file *file, size_t page) {
    uint64_t into = load->p_vaddr - object->lowest, skip = into % page;
    uint8_t *start = object->base + (into - skip);
    size_t bytes = (size_t)((skip + load->p_memsz + page - 1) / page * page);
    int protection = ((load->p_flags & PF_R) ? PROT_READ : 0) | ((load->p_flags & PF_W) ? PROT_WRITE : 0)
                     | ((load->p_flags & PF_X) ? PROT_EXEC | PROT_READ : 0);
    if (load->p_filesz == load->p_memsz && load->p_offset % page == skip && file->descriptor >= 0
        && mmap(start, bytes, protection, MAP_PRIVATE | MAP_FIXED, file->descriptor, (off_t)(load->p_offset - skip))
               != MAP_FAILED) {
        return true;
    }
    if (mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) {
        return false;
    }
    if (load->p_filesz != 0) {
        memcpy(start + skip, file->data + load->p_offset, load->p_filesz);
    }
    __builtin___clear_cache((char *)start, (char *)start + bytes);
    return mprotect(start, bytes, protection) == 0;
}

static const char *map_segments(ellm_object *object, const ellm_file *file) {
    const struct ellm_object_layout *layout = object->layout;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const segment *last = &layout->loads[layout->n_loads - 1];
    object->lowest = layout->loads[0].p_vaddr / page * page;
    object->bytes = (size_t)((last->p_vaddr + last->p_memsz - object->lowest + page - 1) / page * page);
    for (size_t i = 1; i < layout->n_loads; i++) {
        const segment *before = &layout->loads[i - 1];
        if ((before->p_vaddr + before->p_memsz + page - 1) / page > layout->loads[i].p_vaddr / page) {
            return "two of its segments share a page of this system; compile the bundle again";
        }
    }
    void *base = mmap(NULL, object->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return "its segments could not be mapped";
    }
    object->base = base;
    for (size_t i = 0; i < layout->n_loads; i++) {
        if (!map_segment(object, &layout->loads[i], file, page)) {
            return "a segment could not be mapped; is executable memory forbidden here?";
        }
    }
    return NULL;
}

ellm_status ellm_object_open(const ellm_file *file, const char *path, ellm_object *object, ellm_error *error) {
    *object = (ellm_object){0};
    struct ellm_object_layout *layout = calloc(1, sizeof *layout);
    if (layout == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory to load it", path);
    }
    object->layout = layout;
    layout->data = file->data;
    layout->bytes = file->bytes;
    file_header header;
    segment dynamic_segment = {.p_type = PT_NULL};
    if (!copy(layout, 0, &header, sizeof header) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
        ellm_object_close(object);
        return ellm_fail(error, ELLM_KERNEL_INVALID, "%s: not an ELF file; deploy the bundle again", path);
    }
    if (header.e_ident[EI_CLASS] != CLASS || header.e_machine != MACHINE) {
        ellm_object_close(object);
        return ellm_fail(error, ELLM_CPU_UNSUPPORTED,
                         "%s: compiled for ELF machine %u, this runtime is machine %u; compile for this board", path,
                         (unsigned)header.e_machine, (unsigned)MACHINE);
    }
    const char *wrong = header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_type != ET_DYN
                            ? "not a little-endian shared object"
                            : read_segments(layout, &header, &dynamic_segment);
    wrong = wrong != NULL ? wrong : read_dynamic(layout, &dynamic_segment);
    wrong = wrong != NULL ? wrong : check_symbols(layout);
    wrong = wrong != NULL ? wrong : map_segments(object, file);
    if (wrong != NULL) {
        ellm_object_close(object);
        return ellm_fail(error, ELLM_KERNEL_INVALID, "%s: %s", path, wrong);
    }
    return ELLM_OK;
}

void *ellm_object_find(const ellm_object *object, const char *name) {
    const struct ellm_object_layout *layout = object->layout;
    for (uint64_t i = 1; i < layout->n_symbols; i++) {
        symbol now = symbol_at(layout, i);
        if (SYMBOL_TYPE(now.st_info) != STT_FUNC
            || strcmp((const char *)layout->data + layout->strings + now.st_name, name) != 0) {
            continue;
        }
        uint64_t address = now.st_value;
#if defined(__arm__)
        address &= ~(uint64_t)1; /* Thumb */
#endif
        for (size_t j = 0; j < layout->n_loads; j++) {
            const segment *load = &layout->loads[j];
            if ((load->p_flags & PF_X) && address >= load->p_vaddr && address - load->p_vaddr < load->p_filesz) {
                return object->base + (now.st_value - object->lowest);
            }
        }
    }
    return NULL;
}

void ellm_object_close(ellm_object *object) {
    if (object->base != NULL) {
        munmap(object->base, object->bytes);
    }
    free((void *)(uintptr_t)object->layout);
    *object = (ellm_object){0};
}
