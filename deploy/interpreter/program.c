/* The bundle's program: CPython in one executable, and the little that runs before start.py.
 *
 * PyInstaller's bootloader loads a shared library of Python, which costs a start some 8,000,000
 * instructions more: relocations, the search for the standard library, extension modules in files
 * of their own. Here all of it is linked into a program of fixed addresses.
 *
 * The directory `lib` beside the program has what pycni.spec puts there: `start` is the code of
 * start.py, and sys._MEIPASS is its path, as with the bootloader. A call of a plugin begins with the
 * file `snapshot` in it, in which start.py has been run and the plugins are imported. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <marshal.h>
#include "snapshot.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BIGGEST_START (1 << 20) /* bytes of `start` */
#define MAKER "make-snapshot" /* argv[0] of the process that makes it; start.py knows it as well */
#define NO_SNAPSHOT "_PYCNI_NO_SNAPSHOT" /* a variable: start as without one; start.py removes it */

PyMODINIT_FUNC PyInit__setns(void); /* deploy/frozen/setns.c */

#ifdef TRAINING
/* start.py ends every process by os._exit, which would lose the profile. */
void __gcov_dump(void);
__attribute__((noreturn)) void __real__exit(int status);
__attribute__((noreturn)) void __wrap__exit(int status);

void __wrap__exit(int status)
{
    __gcov_dump();
    __real__exit(status);
}
#endif

__attribute__((noreturn))
static void fail(const char *what, const char *path)
{
    fprintf(stderr, "pycni: %s '%s'; install pycni again\n", what, path);
    if (getenv("CNI_COMMAND") != NULL)
        puts("{\"cniVersion\":\"1.1.0\",\"code\":999,"
             "\"msg\":\"pycni cannot start, see its stderr; install it again\"}");
    exit(EXIT_FAILURE);
}

/* Write the paths of this program and of the directory `lib` beside it. */
static void find_places(char program[PATH_MAX], char lib[PATH_MAX])
{
    static const char name[] = "lib";
    ssize_t length = readlink("/proc/self/exe", program, PATH_MAX - sizeof name);

    if (length < 0)
        fail("cannot read", "/proc/self/exe");
    program[length] = '\0';
    while (length > 0 && program[length - 1] != '/')
        length--;
    memcpy(lib, program, (size_t)length);
    memcpy(lib + length, name, sizeof name);
}

/* Set a text of Python's configuration. `text` is in the encoding of file names. */
static void set(PyConfig *config, wchar_t **setting, const char *text)
{
    PyStatus status = PyConfig_SetBytesString(config, setting, text);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

/* Start Python as PyInstaller's bootloader does: isolated, UTF-8, and nothing is searched. */
static void start_python(const char *program, const char *lib, int argc, char **argv)
{
    if (PyImport_AppendInittab("_setns", PyInit__setns) < 0)
        fail("has no memory for", "_setns");

    PyPreConfig early;
    PyPreConfig_InitIsolatedConfig(&early);
    early.utf8_mode = 1;
    early.configure_locale = 0;
    PyStatus status = Py_PreInitialize(&early);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.optimization_level = 2;
    config.install_signal_handlers = 1;
    config.use_frozen_modules = 1;
    config.pathconfig_warnings = 0;
    config.parse_argv = 0;
    config._init_main = 0;
    config.use_hash_seed = snapshot_grows; /* a snapshot has one seed: the same sources, the same bytes */
    config.module_search_paths_set = 1;
    wchar_t **places[] = {
        &config.prefix, &config.base_prefix, &config.exec_prefix, &config.base_exec_prefix,
        &config.stdlib_dir,
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        set(&config, places[i], lib);
    set(&config, &config.executable, program);
    set(&config, &config.base_executable, program);
    set(&config, &config.platlibdir, "lib");
    wchar_t *directory = Py_DecodeLocale(lib, NULL);
    if (directory == NULL)
        fail("cannot decode", lib);
    status = PyWideStringList_Append(&config.module_search_paths, directory);
    PyMem_RawFree(directory);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesArgv(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (!PyStatus_Exception(status)) {
        PyGC_Disable(); /* what is imported is no garbage; start.py decides about the rest */
        status = _Py_InitializeMain();
    }
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

/* Return the code in the file `lib`/start, NULL with an exception set. */
static PyObject *load_start(const char *lib)
{
    char path[PATH_MAX + sizeof "/start"];
    struct stat facts;

    snprintf(path, sizeof path, "%s/start", lib);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts) < 0 || facts.st_size > BIGGEST_START)
        fail("cannot read", path);
    char *code = malloc((size_t)facts.st_size + 1);
    if (code == NULL || read(fd, code, (size_t)facts.st_size) != facts.st_size)
        fail("cannot read", path);
    close(fd);
    PyObject *loaded = PyMarshal_ReadObjectFromString(code, (Py_ssize_t)facts.st_size);
    free(code);
    return loaded;
}

/* Return the global variable of start.py. */
static PyObject *variable_of_start(const char *name)
{
    return PyDict_GetItemString(PyModule_GetDict(PyImport_AddModule("__main__")), name);
}

/* Return a list of texts, which are in the encoding of file names. */
static PyObject *list_of(char **texts, PyObject *convert(const char *))
{
    PyObject *list = PyList_New(0);

    for (; list != NULL && *texts != NULL; texts++) {
        PyObject *text = convert(*texts);
        if (text == NULL || PyList_Append(list, text) < 0)
            return NULL;
        Py_DECREF(text);
    }
    return list;
}

/* Serve a call of a plugin by the snapshot. Returns where there is none that fits. */
static void serve_by_snapshot(const char *program, const char *lib, char **argv)
{
    char path[PATH_MAX + sizeof "/snapshot"];
    PyObject *done;

    snprintf(path, sizeof path, "%s/snapshot", lib);
    switch (snapshot_resume(path)) {
    case SNAPSHOT_UNUSED:
        return;
    case SNAPSHOT_BROKEN: /* there is no memory for so many mappings */
        if (setenv(NO_SNAPSHOT, "1", 1) == 0)
            execv("/proc/self/exe", argv);
        fail("cannot map", path);
    case SNAPSHOT_RESUMED:
        done = PyObject_CallFunction(variable_of_start("resume"), "NNNN",
                                     list_of(argv, PyUnicode_DecodeFSDefault),
                                     list_of(environ, PyBytes_FromString),
                                     PyUnicode_DecodeFSDefault(program),
                                     PyUnicode_DecodeFSDefault(lib));
        if (done == NULL)
            PyErr_Print();
        fail("cannot run", lib); /* start.py ends the process */
    }
}

/* Run start.py. Returns whether it came to its end, as it does for a snapshot alone. */
static bool run_start(const char *lib)
{
    PyObject *place = PyUnicode_DecodeFSDefault(lib);
    PyObject *start = load_start(lib);
    PyObject *globals = PyModule_GetDict(PyImport_AddModule("__main__"));

    if (place == NULL || start == NULL || PySys_SetObject("_MEIPASS", place) < 0
        || PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) < 0
        || PyEval_EvalCode(start, globals, globals) == NULL) {
        PyErr_Print();
        return false;
    }
    return true;
}

/* Make the snapshot, in the directory `lib`: no path of the build machine is kept. */
static int make_snapshot(int argc, char **argv)
{
    snapshot_begin(argv);
    start_python("pycni", ".", argc, argv);
    snapshot_show_errors();
    return run_start(".") && snapshot_write() ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    char lib[PATH_MAX];
    char program[PATH_MAX];
    const char *command = getenv("CNI_COMMAND");

    if (argc == 1 && strcmp(argv[0], MAKER) == 0)
        return make_snapshot(argc, argv);
    find_places(program, lib);
    if (argc == 1 && command != NULL && *command != '\0' && getenv(NO_SNAPSHOT) == NULL)
        serve_by_snapshot(program, lib, argv);
    start_python(program, lib, argc, argv);
    (void)run_start(lib);
    fail("cannot run", lib); /* start.py ends the process */
}
