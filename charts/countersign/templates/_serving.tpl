{{/*
How the provider is run: its command line, serving certificate, trust in callers, credentials from files.

Rules: this file alone knows the flags of `countersign serve`; a flag that changes its name changes here. What the chart
does not set is left to the program's own default.
What does not belong here: what is trusted (_trust.tpl), the pod (deployment.yaml).
*/}}

{{/*
The serving certificate as JSON:
  secret    name of the Secret
  mounted   whether the Secret is mounted; not with rotation, because what is mounted changes a minute or more after the Secret
  render    whether the Secret is the chart's
  given     whether certificate and key are in the values
  caBundle  base64 of PEM for the Provider objects
*/}}
{{- define "countersign.tls" -}}
{{- $tls := .Values.provider.tls }}
{{- $rotated := .Values.featureFlags.RATIFY_CERT_ROTATION }}
{{- $secret := default (printf "%s-tls" (include "countersign.fullname" .)) $tls.existingSecret }}
{{- $given := or $tls.crt $tls.key }}
{{- $host := printf "%s.%s" (include "countersign.fullname" .) .Release.Namespace }}
{{- $bundle := "" }}
{{- if $tls.cabundle }}
{{- $bundle = contains "-----BEGIN CERTIFICATE-----" $tls.cabundle | ternary (b64enc $tls.cabundle) (regexReplaceAll "\\s+" $tls.cabundle "") }}
{{- if not (contains "-----BEGIN CERTIFICATE-----" (b64dec $bundle)) }}
{{- fail "provider.tls.cabundle is neither PEM nor base64 of PEM: give the CA certificate's file with --set-file provider.tls.cabundle=FILE" }}
{{- end }}
{{- else if $tls.caCert }}
{{- $bundle = b64enc $tls.caCert }}
{{- end }}
{{- if and $tls.existingSecret $given }}
{{- fail "provider.tls.existingSecret stands beside provider.tls.crt or key: give the certificate one way" }}
{{- end }}
{{- if and $tls.existingSecret $rotated }}
{{- fail "provider.tls.existingSecret stands beside featureFlags.RATIFY_CERT_ROTATION: two would renew one certificate; leave one of them out" }}
{{- end }}
{{- if $given }}
{{- if not (and $tls.crt $tls.key) }}
{{- fail "provider.tls.crt and provider.tls.key are a pair: give both" }}
{{- end }}
{{- if not (and (contains "-----BEGIN CERTIFICATE-----" $tls.crt) (contains "PRIVATE KEY-----" $tls.key)) }}
{{- fail "provider.tls.crt and provider.tls.key must be PEM: give the files with --set-file provider.tls.crt=FILE and --set-file provider.tls.key=FILE" }}
{{- end }}
{{- end }}
{{- if not (or $given $tls.existingSecret $rotated) }}
{{- fail (printf "You must provide a TLS certificate for %s or enable RATIFY_CERT_ROTATION: set featureFlags.RATIFY_CERT_ROTATION=true, or provider.tls.crt, key and cabundle, or provider.tls.existingSecret and cabundle" $host) }}
{{- end }}
{{- if and (not $bundle) (or $tls.existingSecret (and $given (not $rotated))) }}
{{- fail "provider.tls.cabundle is empty: Gatekeeper calls only a provider whose CA it is given; set it with --set-file provider.tls.cabundle=FILE" }}
{{- end }}
{{- /* A certificate whose key nobody has; see charts/generate.py. It always is the same text, so that Helm's three-way
       merge leaves alone what the provider wrote in its place. */}}
{{- if not $bundle }}{{ $bundle = .Files.Get "files/placeholder-ca.pem" | b64enc }}{{ end }}
{{- dict "secret" $secret "mounted" (not $rotated) "render" (not $tls.existingSecret) "given" (not (not $given)) "caBundle" $bundle | toJson }}
{{- end }}

{{/* Secrets with CAs of callers as JSON: {list: [{volume, secret, key, path, optional}]}. */}}
{{- define "countersign.clientCASecrets" -}}
{{- $list := list }}
{{- with .Values.provider.clientAuth }}
{{- if .gatekeeperSecret }}
{{- $list = append $list (dict "volume" "client-ca-cert" "secret" .gatekeeperSecret "key" "ca.crt" "path" "/usr/local/client-ca/gatekeeper" "optional" (not .required)) }}
{{- else if .required }}
{{- fail "provider.clientAuth.required is set without provider.clientAuth.gatekeeperSecret: name the Secret" }}
{{- end }}
{{- range $index, $entry := .caCerts }}
{{- $list = append $list (dict "volume" (printf "client-ca-cert-%d" $index) "secret" $entry.secretName "key" $entry.secretKey "path" (printf "/usr/local/client-ca/%d" $index) "optional" false) }}
{{- end }}
{{- end }}
{{- dict "list" $list | toJson }}
{{- end }}

{{/* The level of Ratify's logger as ours. */}}
{{- define "countersign.logLevel" -}}
{{- $levels := dict "trace" "debug" "debug" "debug" "info" "info" "warn" "warning" "warning" "warning" "error" "error" "fatal" "error" "panic" "error" }}
{{- get $levels (lower (default "info" .Values.logger.level)) }}
{{- end }}

{{/* Seconds after which a verification or mutation is answered. Arguments: name, timeout, given. */}}
{{- define "countersign.deadline" -}}
{{- $seconds := subf (float64 .timeout) 0.2 }}
{{- if .given }}
{{- $seconds = .given }}
{{- if ge (float64 .given) (float64 .timeout) }}
{{- fail (printf "provider.deadline.%s is %v, not less than Gatekeeper's time of %v s: an answer after that is never seen" .name .given .timeout) }}
{{- end }}
{{- end }}
{{- $seconds }}
{{- end }}

{{/* The Provider objects as JSON: {list: [{name, url, timeout}]}. */}}
{{- define "countersign.providers" -}}
{{- $url := printf "https://%s.%s:6001/ratify/gatekeeper/v1" (include "countersign.fullname" .) .Release.Namespace }}
{{- $times := .Values.provider.timeout }}
{{- $list := list (dict "name" "ratify-provider" "url" (printf "%s/verify" $url) "timeout" $times.validationTimeoutSeconds) }}
{{- if .Values.provider.enableMutation }}
{{- $list = append $list (dict "name" "ratify-mutation-provider" "url" (printf "%s/mutate" $url) "timeout" $times.mutationTimeoutSeconds) }}
{{- end }}
{{- dict "list" $list | toJson }}
{{- end }}

{{/* Flags of the self-managed certificate: gatekeeper/rotation_plan.py RotationSettings. */}}
{{- define "countersign.rotationArgs" -}}
- --rotate-certs
- --rotate-service={{ include "countersign.fullname" . }}
- --rotate-secret={{ (include "countersign.tls" . | fromJson).secret }}
{{- range (include "countersign.providers" . | fromJson).list }}
- --rotate-provider={{ .name }}
{{- if $.Values.provider.tls.restoreProviders }}
- --restore-provider={{ .name }},{{ .timeout }},{{ .url }}
{{- end }}
{{- end }}
{{- end }}

{{/* The command line, as a list. The program is the image's entrypoint. */}}
{{- define "countersign.args" -}}
{{- $provider := .Values.provider -}}
- serve
- --cluster
- --port=6001
- --health-port={{ include "countersign.integer" .Values.healthPort }}
{{- if .Values.instrumentation.metricsEnabled }}
- --metrics-port={{ include "countersign.integer" .Values.instrumentation.metricsPort }}
{{- else }}
- --no-metrics
{{- end }}
- --cert-dir=/usr/local/tls
{{- if .Values.featureFlags.RATIFY_CERT_ROTATION }}
{{ include "countersign.rotationArgs" . }}
{{- end }}
{{- range (include "countersign.clientCASecrets" . | fromJson).list }}
- --{{ if .optional }}optional-{{ end }}client-ca-file={{ .path }}/ca.crt
{{- end }}
{{- if $provider.clientAuth.caBundle }}
- --client-ca-file=/usr/local/client-ca/values/ca.crt
{{- end }}
{{- range $provider.clientAuth.allowedNames }}
- {{ printf "--allowed-client-name=%s" . | quote }}
{{- end }}
- --verify-deadline={{ include "countersign.deadline" (dict "name" "verifySeconds" "timeout" $provider.timeout.validationTimeoutSeconds "given" $provider.deadline.verifySeconds) }}
- --mutate-deadline={{ include "countersign.deadline" (dict "name" "mutateSeconds" "timeout" $provider.timeout.mutationTimeoutSeconds "given" $provider.deadline.mutateSeconds) }}
{{- with $provider.deadline.verificationSeconds }}
- --verification-timeout={{ . }}
{{- end }}
- --result-ttl={{ if $provider.cache.enabled }}{{ include "countersign.seconds" $provider.cache.ttl }}{{ else }}0{{ end }}
- --result-cache-mib={{ include "countersign.integer" $provider.cache.cacheSizeMb }}
{{- with $provider.limits.maxKeys }}
- --max-keys={{ include "countersign.integer" . }}
{{- end }}
{{- with $provider.limits.maxBodyBytes }}
- --max-body-bytes={{ include "countersign.integer" . }}
{{- end }}
{{- if $provider.mutation.keepTag }}
- --mutation-keep-tag
{{- end }}
{{- with $provider.prewarm }}
{{- if .images }}
- --prewarm-file=/usr/local/prewarm/images
{{- end }}
{{- if .pods }}
- --prewarm-pods
{{- end }}
{{- if .snapshot }}
- --prewarm-snapshot=/tmp/prewarm-snapshot
{{- end }}
{{- if and .waitSeconds (or .images .pods .snapshot) }}
- --prewarm-wait-seconds={{ include "countersign.integer" .waitSeconds }}
{{- end }}
{{- end }}
{{- range .Values.logger.requestHeaders.traceIDHeaderName }}
{{- if . }}
- {{ printf "--trace-header=%s" . | quote }}
{{- end }}
{{- end }}
- --log-level={{ include "countersign.logLevel" . }}
- --log-format={{ eq (default "text" .Values.logger.formatter) "text" | ternary "text" "json" }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Environment variables, the user's own last: of two with one name the last counts. */}}
{{- define "countersign.env" -}}
- name: COUNTERSIGN_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- if or .Values.dockerConfig .Values.registryCredsSecret }}
- name: DOCKER_CONFIG
  value: /usr/local/docker
{{- end }}
{{- if and .Values.oras.authProviders.azureManagedIdentityEnabled .Values.azureManagedIdentity.tenantId }}
- name: AZURE_TENANT_ID
  value: {{ .Values.azureManagedIdentity.tenantId | quote }}
{{- end }}
{{- with .Values.oras.authProviders }}
{{- if and .awsEcrBasicEnabled .awsApiOverride.enabled }}
- name: AWS_API_OVERRIDE_ENDPOINT
  value: {{ .awsApiOverride.endpoint | quote }}
- name: AWS_API_OVERRIDE_PARTITION
  value: {{ .awsApiOverride.partition | default "aws" | quote }}
- name: AWS_API_OVERRIDE_REGION
  value: {{ .awsApiOverride.region | quote }}
{{- end }}
{{- end }}
{{- range $flag, $on := .Values.featureFlags }}
- name: {{ $flag }}
  value: {{ $on | ternary "1" "0" | quote }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where the Docker configuration comes from: the name of a Secret, or nothing. */}}
{{- define "countersign.dockerSecret" -}}
{{- if and .Values.dockerConfig .Values.registryCredsSecret }}
{{- fail "dockerConfig stands beside registryCredsSecret: give the credentials one way" }}
{{- end }}
{{- if .Values.registryCredsSecret }}
{{- .Values.registryCredsSecret }}
{{- else if .Values.dockerConfig }}
{{- printf "%s-dockerconfig" (include "countersign.fullname" .) }}
{{- end }}
{{- end }}
