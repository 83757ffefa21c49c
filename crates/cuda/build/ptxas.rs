//! Reads what `ptxas -v` says of the kernels.

/// What one kernel takes of the multiprocessor, as `ptxas` allocated it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelUse {
    pub name: String,
    /// Per thread, of 4 bytes each.
    pub registers: u32,
    /// Static shared memory of a block.
    pub smem_bytes: u32,
    /// Local memory of a thread: spilled registers, and arrays with an index that is not constant.
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
}

/// What `ptxas` says of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ptxas {
    /// In `ptxas`'s order.
    pub kernels: Vec<KernelUse>,
    /// Lines with a number C75xx: matrix instructions that are serialised or wait, `setmaxnreg` that is ignored.
    pub losses: Vec<String>,
}

impl Ptxas {
    pub fn parse(output: &str) -> Self {
        let mut ptxas = Self::default();
        for line in output.lines() {
            if line.contains("(C75") {
                ptxas.losses.push(line.trim().to_owned());
            } else if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let name = rest.split('\'').next().unwrap_or_default().to_owned();
                ptxas.kernels.push(KernelUse { name, ..KernelUse::default() });
            } else if let Some(kernel) = ptxas.kernels.last_mut() {
                kernel.read(line);
            }
        }
        ptxas
    }

    /// Everything here that costs speed, one sentence each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.losses.clone();
        for KernelUse { name, stack_bytes, spill_store_bytes, spill_load_bytes, .. } in &self.kernels {
            if *spill_store_bytes > 0 || *stack_bytes > 0 {
                faults.push(format!(
                    "kernel {name} uses local memory: {stack_bytes} bytes of stack, {spill_store_bytes} bytes of spill \
                     stores, {spill_load_bytes} bytes of spill loads"
                ));
            }
        }
        faults
    }
}

impl KernelUse {
    /// Takes the numbers of one line. A function that was not inlined into the kernel counts as part of it.
    fn read(&mut self, line: &str) {
        self.registers = number(line, "Used ", " registers").unwrap_or(self.registers);
        self.smem_bytes = number_before(line, " bytes smem").unwrap_or(self.smem_bytes);
        self.stack_bytes += number_before(line, " bytes stack frame").unwrap_or(0);
        self.spill_store_bytes += number_before(line, " bytes spill stores").unwrap_or(0);
        self.spill_load_bytes += number_before(line, " bytes spill loads").unwrap_or(0);
    }
}

fn number(line: &str, before: &str, after: &str) -> Option<u32> {
    line.split_once(before)?.1.split_once(after)?.0.parse().ok()
}

fn number_before(line: &str, after: &str) -> Option<u32> {
    line.split_once(after)?.0.rsplit([' ', ',']).next()?.parse().ok()
}
