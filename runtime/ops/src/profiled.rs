//! A burn backend that records each operation of another backend as a module of [`stage`].
//!
//! A burn module is generic over its backend, so that any module can run on [`Profiled`] without a
//! change. Operations that read a parameter are named by the path of the module that has it
//! ([`name_parameters`]), others by their kind only.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::ExecutionError;
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_backend::DTypeUsageSet;
pub use burn_ir::BackendIr;
use burn_ir::{BaseOperationIr, OperationIr, TensorHandle, TensorId, TensorIr};
use burn_router::{
    BackendRouter, MultiBackendBridge, RouterTensor, Runner, RunnerChannel, RunnerClient,
};
use burn_std::future::DynFut;

use crate::stage;

/// The backend `B`, whose operations are recorded.
pub type Profiled<B> = BackendRouter<ProfiledChannel<B>>;

/// Path of the module of a parameter, by the tensor of the parameter and those that it is reshaped
/// to.
type Names = Arc<Mutex<HashMap<TensorId, Arc<str>>>>;

/// Gives the operations on the parameters of a module their paths.
pub fn name_parameters<B: BackendIr, M: Module<Profiled<B>>>(module: &M) {
    module.visit(&mut NameParameters {
        path: Vec::new(),
        backend: PhantomData::<B>,
    });
}

struct NameParameters<B> {
    path: Vec<String>,
    backend: PhantomData<B>,
}

impl<B: BackendIr> ModuleVisitor<Profiled<B>> for NameParameters<B> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Profiled<B>, D>>) {
        let tensor = param.val().into_primitive().tensor();
        let names = tensor.client.names.clone();
        // The last part is the name of the parameter in its module.
        let (_, module) = self.path.split_last().unzip();
        let path: &[String] = module.unwrap_or_default();
        lock(&names).insert(tensor.into_ir().id, path.join(".").into());
    }
}

fn lock(names: &Names) -> MutexGuard<'_, HashMap<TensorId, Arc<str>>> {
    // No code that can panic runs while the lock is held.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Executes the operations of a device of `B` and records them.
#[derive(Clone)]
pub struct ProfiledClient<B: BackendIr> {
    runner: Runner<B>,
    names: Names,
}

impl<B: BackendIr> ProfiledClient<B> {
    /// Returns the path of the module whose parameter an operation reads. Reshaped parameters keep
    /// their path.
    fn module_of(&self, operation: &OperationIr) -> Option<Arc<str>> {
        let mut names = lock(&self.names);
        let path = operation
            .inputs()
            .find_map(|input| names.get(&input.id).cloned())?;
        if is_view(operation) {
            for output in operation.outputs() {
                names.insert(output.id, path.clone());
            }
        }
        Some(path)
    }
}

/// Returns `true` if an operation only rearranges its input.
fn is_view(operation: &OperationIr) -> bool {
    let OperationIr::BaseFloat(operation) = operation else {
        return false;
    };
    matches!(
        operation,
        BaseOperationIr::Reshape(_)
            | BaseOperationIr::SwapDims(_)
            | BaseOperationIr::Permute(_)
            | BaseOperationIr::Expand(_)
            | BaseOperationIr::Slice(_)
    )
}

impl<B: BackendIr> RunnerClient for ProfiledClient<B> {
    type Device = B::Device;

    fn register_op(&self, operation: OperationIr) {
        if let OperationIr::Drop(tensor) = &operation {
            lock(&self.names).remove(&tensor.id);
            return self.runner.register_op(operation);
        }
        let path = self.module_of(&operation);
        if !stage::recording() {
            return self.runner.register_op(operation);
        }
        let _module = path.map(|path| stage::scope(format_args!("{path}")));
        let _operation = stage::operation(&kind(&operation));
        self.runner.register_op(operation);
    }

    fn read_tensor_async(&self, tensor: TensorIr) -> DynFut<Result<TensorData, ExecutionError>> {
        self.runner.read_tensor_async(tensor)
    }

    fn sync(&self) -> Result<(), ExecutionError> {
        self.runner.sync()
    }

    fn create_empty_handle(&self) -> TensorId {
        self.runner.create_empty_handle()
    }

    fn register_tensor_data(&self, data: TensorData) -> RouterTensor<Self> {
        let tensor = self.runner.register_tensor_data_desc(data);
        RouterTensor::new(tensor.id, tensor.shape, tensor.dtype, self.clone())
    }

    fn device(&self) -> Self::Device {
        self.runner.device()
    }

    fn seed(&self, seed: u64) {
        self.runner.seed(seed);
    }

    fn dtype_usage(&self, dtype: DType) -> DTypeUsageSet {
        self.runner.dtype_usage(dtype)
    }
}

/// Returns the kind of an operation in snake case, such as `matmul` or `add_scalar`.
fn kind(operation: &OperationIr) -> String {
    match operation {
        OperationIr::BaseFloat(op) | OperationIr::BaseInt(op) | OperationIr::BaseBool(op) => {
            variant(op)
        }
        OperationIr::NumericFloat(_, op) | OperationIr::NumericInt(_, op) => variant(op),
        OperationIr::Bool(op) => variant(op),
        OperationIr::Int(op) => variant(op),
        OperationIr::Float(_, op) => variant(op),
        OperationIr::Module(op) => variant(op),
        OperationIr::Init(_) => "init".to_owned(),
        _ => "custom".to_owned(),
    }
}

/// Returns the name of the variant of an enum in snake case.
fn variant(operation: &impl Debug) -> String {
    struct Name(String);
    impl Write for Name {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for letter in text.chars() {
                match letter {
                    // Ends the formatting before the fields.
                    _ if !letter.is_alphanumeric() => return Err(fmt::Error),
                    _ if letter.is_uppercase() && !self.0.is_empty() => {
                        self.0.push('_');
                        self.0.extend(letter.to_lowercase());
                    }
                    _ => self.0.extend(letter.to_lowercase()),
                }
            }
            Ok(())
        }
    }
    let mut name = Name(String::new());
    let _ = write!(name, "{operation:?}");
    name.0
}

/// Connects [`Profiled`] with the devices of `B`.
#[derive(Clone)]
pub struct ProfiledChannel<B>(PhantomData<B>);

impl<B: BackendIr> RunnerChannel for ProfiledChannel<B> {
    type Device = B::Device;
    type Bridge = ProfiledChannel<B>;
    type Client = ProfiledClient<B>;
    type FloatElem = B::FloatElem;
    type IntElem = B::IntElem;
    type BoolElem = B::BoolElem;

    fn name(device: &B::Device) -> String {
        format!("profiled {}", B::name(device))
    }

    fn init_client(device: &B::Device) -> ProfiledClient<B> {
        ProfiledClient {
            runner: Runner::new(device.clone()),
            names: Names::default(),
        }
    }

    fn get_tensor_handle(tensor: &TensorIr, client: &ProfiledClient<B>) -> B::Handle {
        client.runner.get_tensor_handle(tensor)
    }

    fn register_tensor(
        client: &ProfiledClient<B>,
        handle: B::Handle,
        shape: Shape,
        dtype: DType,
    ) -> RouterTensor<ProfiledClient<B>> {
        let runner = &client.runner;
        runner.register_tensor(handle, shape, dtype, client.clone())
    }
}

/// Moves tensors between devices of `B`.
impl<B: BackendIr> MultiBackendBridge for ProfiledChannel<B> {
    type TensorHandle = B::Handle;
    type Device = B::Device;

    fn change_backend_float(handle: B::Handle, shape: Shape, device: &B::Device) -> B::Handle {
        let tensor = B::float_tensor(TensorHandle { handle, shape });
        B::float_tensor_handle(B::float_to_device(tensor, device))
    }

    fn change_backend_int(handle: B::Handle, shape: Shape, device: &B::Device) -> B::Handle {
        let tensor = B::int_tensor(TensorHandle { handle, shape });
        B::int_tensor_handle(B::int_to_device(tensor, device))
    }

    fn change_backend_bool(handle: B::Handle, shape: Shape, device: &B::Device) -> B::Handle {
        let tensor = B::bool_tensor(TensorHandle { handle, shape });
        B::bool_tensor_handle(B::bool_to_device(tensor, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Distribution;
    use burn::tensor::backend::Backend;
    use burn_ndarray::NdArray;

    type Cpu = NdArray<f32, i64, i8>;

    #[derive(Module, Debug)]
    struct Two<B: Backend> {
        layers: Vec<Linear<B>>,
    }

    fn two<B: Backend>() -> Two<B> {
        let linear = || LinearConfig::new(8, 8).init(&Default::default());
        Two {
            layers: vec![linear(), linear()],
        }
    }

    #[test]
    fn operations_are_named_by_the_module_of_their_parameters() {
        let model = two::<Profiled<Cpu>>();
        name_parameters(&model);
        let x = Tensor::<_, 2>::random([4, 8], Distribution::Default, &Default::default());
        let mut recording = stage::Recording::new(None);
        recording.run(|| {
            let x = model.layers[0].forward(x);
            burn::tensor::activation::relu(model.layers[1].forward(x))
        });
        let records = recording.finish();
        let has = |name: &str| records.iter().any(|record| record.name == name);
        assert!(
            has("layers.0.linear") && has("layers.1.linear"),
            "{records:?}"
        );
        assert!(records.iter().all(|record| record.calls > 0));
    }

    #[test]
    fn results_are_those_of_the_backend() {
        let data = TensorData::from([[1.0f32, -2.0], [3.0, 4.0]]);
        fn square<B: Backend>(data: TensorData) -> TensorData {
            let x = Tensor::<B, 2>::from_data(data, &Default::default());
            (x.clone().matmul(x) + 1.0).into_data()
        }
        assert_eq!(square::<Profiled<Cpu>>(data.clone()), square::<Cpu>(data));
    }

    #[test]
    fn kinds_are_in_snake_case() {
        #[derive(Debug)]
        enum Operation {
            AddScalar(#[expect(dead_code, reason = "formatted")] usize),
        }
        assert_eq!(variant(&Operation::AddScalar(3)), "add_scalar");
    }
}
