/* Where Android's linker enters a program: bionic's __libc_init gets the stack as the kernel made it, and never returns.
 * The linker has called the constructors by then; the program has no destructors, so its lists stay empty. */
struct lists {
    void *preinit, *init, *fini;
};

int main(int argc, char **argv);
_Noreturn void __libc_init(void *stack, void (*unused)(void), int (*program)(int, char **), const struct lists *lists);

__attribute__((used)) static _Noreturn void start(void *stack) {
    static const struct lists none;
    __libc_init(stack, 0, main, &none);
}

__asm__(".text\n.globl _start\n.type _start, %function\n_start:\nmov x29, #0\nmov x30, #0\nmov x0, sp\nb start\n"
        ".size _start, . - _start\n");
